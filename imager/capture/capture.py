"""A capture from plan to image."""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import imager
from imager import blockdev
from imager.capture.pipeline import Pipeline, stages_of
from imager.capture.planner import CapturePlan, VolumePlan
from imager.capture.source import check_unwritten
from imager.errors import SourceError
from imager.repository.compression import Compressor
from imager.repository.image import ExtentsNote, Manifest, Summary, VolumeSummary
from imager.repository.keyring import Credential
from imager.repository.repository import Problem, Repository, now
from imager.repository.session import Counters, Session
from imager.stages import Stages

OFFLINE: Final = "offline"

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Captured:
    """An image that was made.

    Attributes:
        image: its id.
        summary: what it says of itself.
        new_chunks: number of chunks that were not in the repository before.
        problems: damage in the repository that was noticed on the way.
        stages: where the time went.
    """

    image: str
    summary: Summary
    new_chunks: int
    problems: tuple[Problem, ...]
    stages: Stages


def capture(
    plan: CapturePlan,
    repository: Repository,
    credential: Credential,
    advance: Advance,
    *,
    level: int | None = None,
    workers: int | None = None,
) -> Captured:
    """Read what the plan says and store it as one image.

    The image appears in the repository as the very last step; whatever goes wrong before leaves
    no image, and what was stored until then is found and used by the next capture.

    Args:
        plan: what to read.
        repository: where to.
        credential: of the machine.
        advance: told of every byte read.
        level: of zstd; None lets it follow what is the bound.
        workers: threads that hash, compress and seal; by default one for each core.

    Raises:
        SourceError: a disk can't be read, or changed its size meanwhile.
        SourceInUse: something was written to a disk meanwhile.
        NoRoom: the repository is full.
        SecretError: the credential does not fit the repository.
    """
    started = now()
    repository.backend.tidy()
    workers = workers or len(os.sched_getaffinity(0))
    stages = stages_of(workers)
    by_path: defaultdict[Path, list[VolumePlan]] = defaultdict(list)
    for volume in plan.volumes:
        by_path[volume.path].append(volume)
    summaries: dict[str, VolumeSummary] = {}
    with (
        Session(repository, credential, Compressor(level), stages) as session,
        Pipeline(session, workers, stages) as pipeline,
    ):
        last = session.last_image(plan.machine.id)
        base = session.saved_maps(last.load())
        for path, volumes in by_path.items():
            sector = volumes[0].disk.identity.logical_sector
            with (
                blockdev.open_disk(path) as descriptor,
                blockdev.open_past_cache(path, sector) as direct,
            ):
                for item in volumes:
                    name, length = item.volume.id, item.volume.length
                    before = base.read_parts(name, length)
                    root, used = pipeline.add_volume(
                        descriptor, item.volume, item.extents, advance, before, direct
                    )
                    summaries[name] = VolumeSummary(name, length, used, root.id.hex(), root.level)
                if blockdev.size_of(descriptor) != item.disk.identity.size:
                    raise SourceError(f"{item.disk.origin} changed its size during the capture")
        check_unwritten(plan.marks)
        image_id, summary = _finish(plan, session, started, summaries)
        last.keep(image_id)
    return Captured(image_id, summary, session.counters.new_chunks, tuple(session.problems), stages)


def _finish(
    plan: CapturePlan, session: Session, started: str, summaries: Mapping[str, VolumeSummary]
) -> tuple[str, Summary]:
    listed = tuple(summaries[item.volume.id] for item in plan.volumes)
    machine = plan.machine

    def summarise(indexes: tuple[str, ...], counters: Counters) -> Summary:
        return Summary(
            machine_id=machine.id,
            machine_name=machine.name,
            started=started,
            finished=now(),
            source=OFFLINE,
            used_bytes=sum(volume.used for volume in listed),
            new_bytes=counters.new_bytes,
            stored_bytes=counters.stored_bytes,
            indexes=indexes,
            volumes=listed,
        )

    notes = {
        item.volume.id: ExtentsNote(item.extents.method, item.extents.reason or "")
        for item in plan.volumes
    }
    manifest = Manifest(machine, notes, f"remetal {imager.__version__}")
    return session.finish(summarise, manifest)
