"""Drills from end to end, and what they leave behind.

A drill works in a folder of its own. When it succeeds nothing of it stays, unless it is to be
kept; when it fails the folder stays without disks and secrets: consoles, pictures, the restore's
log and the report.
"""

import secrets
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from bootmedia.config import MediumConfig
from bootmedia.medium import build_medium
from imager.errors import OutputExists, RemetalError, UsageError
from imager.layout.machine import Machine
from imager.repository.backend.place import Access, Place
from imager.repository.keyring import LockedRecoveryKey, check_owner
from imager.repository.repository import Repository
from imager.repository.retrieval import OpenImage, Unlocked, open_image
from imager.units import format_size
from restore.drill import fixture, job, report, scenario
from restore.drill.bring_back import Drill, Order, Settings, Verdict
from restore.drill.report import Outcome, Result
from restore.drill.same_bytes import compare_disks
from restore.drill.scenario import BlankDisk, Medium, Places, Scenario
from restore.drill.steps import Steps
from restore.drill.variation import FITTED, Variation, cuts, expectation, vary
from restore.drill.vm_spec import Bus, Firmware
from restore.without import Without, judge

_MEMORY_MIB: Final = 2048  # of a restored machine when nobody says


@dataclass(frozen=True, slots=True)
class Store:
    """One place, as each of those sees it who does a part of a fixture's drill.

    Attributes:
        owner: makes the repository.
        machine: adds the image.
        rescue: reads it.
    """

    owner: Place
    machine: Place
    rescue: Place

    @classmethod
    def of(cls, place: Place) -> "Store":
        """Return a place where all of them may do the same."""
        return cls(place, place, place)


@dataclass(frozen=True, slots=True)
class Choices:
    """What a person chose for a drill.

    Attributes:
        firmware: None for the machine's own.
        medium: what the rescue medium is attached as.
        iso: a rescue medium that exists; None to build one.
        cache: folder for what is slow to make for a medium.
        memory_mib: of the restored machine; None for the usual.
        ports: TCP ports of which an open one counts as proof.
        store: where the repository of a fixture machine is made; None for a directory of the drill.
        variation: in what the machine that a fixture comes back on differs from the old one.
    """

    firmware: Firmware | None
    medium: Medium
    iso: Path | None
    cache: Path
    memory_mib: int | None = None
    ports: tuple[int, ...] = ()
    store: Store | None = None
    variation: Variation = Variation.SAME


@dataclass(frozen=True, slots=True)
class Subject:
    """A saved machine to drill with.

    Attributes:
        opened: its image.
        repository: where it is.
        image: id.
        used_bytes: of the image.
        stored_bytes: that its capture added.
        recovery_key: file that opens it.
        secret: passphrase of the recovery key.
    """

    opened: OpenImage
    repository: Place
    image: str
    used_bytes: int
    stored_bytes: int
    recovery_key: Path
    secret: str

    @property
    def machine(self) -> Machine:
        """Its layout."""
        return self.opened.machine


@dataclass(slots=True)
class _Sheet:
    """A result that fills while the drill runs."""

    result: Result

    def note(self, **known: Any) -> None:
        self.result = replace(self.result, **known)


def drill_image(subject: Subject, choices: Choices, settings: Settings) -> Result:
    """Drill with a saved machine that says nothing about itself.

    Raises:
        UsageError: the machine can't start from that firmware.
    """
    machine = subject.machine
    firmware = choices.firmware or scenario.default_firmware(machine)
    scenario.check_firmware(machine, firmware)
    plan = Scenario(
        name=machine.name,
        firmware=firmware,
        medium=choices.medium,
        disks=tuple(scenario.blank_disk(disk) for disk in machine.disks),
        memory_mib=choices.memory_mib or _MEMORY_MIB,
        uuid=str(uuid.UUID(machine.id)),
        ports=choices.ports,
    )

    def work(places: Places, steps: Steps, sheet: _Sheet) -> Verdict:
        sheet.note(used_bytes=subject.used_bytes, stored_bytes=subject.stored_bytes)
        iso = _medium(choices, places, steps, sheet)
        return Drill(plan, settings, places, steps).bring_back(_order(subject, iso), None)

    return _conduct(machine.name, replace(choices, firmware=firmware), settings, work)


def drill_fixture(name: str, choices: Choices, settings: Settings) -> Result:
    """Build a fixture machine, save it, destroy it, bring it back and compare every fact.

    Raises:
        UsageError: the variation does not go with that place of the repository.
    """
    has_repository_disk = choices.variation is Variation.REPOSITORY_DISK
    if has_repository_disk and choices.store is not None:
        raise UsageError(
            f"--vary {choices.variation} puts the repository on a disk of its own",
            hint="Leave REPO out.",
        )

    def work(places: Places, steps: Steps, sheet: _Sheet) -> Verdict:
        with steps.step("build the machine") as remark:
            built = fixture.build(name, steps.say)
            remark.size = sum(disk.size for disk in built.disks)
        firmware = choices.firmware or Firmware(built.firmware)
        sheet.note(firmware=firmware.value)
        with steps.step("copy its disks"):
            copies = fixture.copy_disks(built.disks, places.folder, "machine")
        store = choices.store or Store.of(Place(str(places.folder / "repository"), Access()))
        subject = _capture(name, copies, built.disks, store, places, steps, sheet)
        scenario.check_firmware(subject.machine, firmware)
        for number, copy in enumerate(copies):
            with steps.step("destroy the machine" + f" (disk {number})" * bool(number)) as remark:
                remark.size = fixture.destroy(copy)
                remark.text = "encrypted with a key nobody has; no partition table is left"
            copy.unlink()
        stale = _leave_stale(built, places) if choices.variation is Variation.STALE_DISK else None
        plan = Scenario(
            name=name,
            firmware=firmware,
            medium=choices.medium,
            disks=vary([disk.blank() for disk in built.disks], choices.variation),
            memory_mib=choices.memory_mib or built.memory_mib,
            uuid=built.uuid,
            reversed=choices.variation is Variation.REVERSED,
            stale=stale,
            cuts=cuts(name) if choices.variation is Variation.POWER_CUTS else (),
            repository=_beside_repository(built) if has_repository_disk else None,
        )
        iso = _medium(choices, places, steps, sheet)
        less = _without(subject.machine, len(plan.disks))
        fits = choices.variation in FITTED
        special = job.Special(leave_out=tuple(disk.id for disk in less.disks), fit=fits)
        order = replace(_order(subject, iso), special=special)
        expects = expectation(choices.variation, less)
        compare = partial(
            compare_disks,
            subject.opened,
            [disk.path for disk in built.disks][: len(plan.disks)],
            tables=expects.same_tables,
            without=less,
        )
        # What is fitted has other bytes in other places: of that, the hashes of all files judge.
        drill = Drill(plan, settings, places, steps, None if fits else compare)
        return drill.bring_back(order, built.expected(), expects)

    return _conduct(name, choices, settings, work)


def _without(machine: Machine, number: int) -> Without:
    """Return what it means that only the first disks are there; which have boot code is not asked."""
    return judge(machine, [disk.id for disk in machine.disks[number:]], ())


def _leave_stale(built: fixture.Fixture, places: Places) -> BlankDisk:
    """Leave an old copy of the machine's last disk lying around."""
    last = built.disks[-1]
    fixture.copy_disks([last], places.folder, places.stale.stem.rstrip("0"))
    return replace(last.blank(), serial="STALE-0001")


def _beside_repository(built: fixture.Fixture) -> BlankDisk:
    """Return the disk that the repository goes on: just like the one that is restored to."""
    return BlankDisk(built.disks[0].size, Bus.VIRTIO, "REPOSITORY-0001")


def _capture(
    name: str,
    copies: Sequence[Path],
    disks: Sequence[fixture.FixtureDisk],
    store: Store,
    places: Places,
    steps: Steps,
    sheet: _Sheet,
) -> Subject:
    """Save a machine as a person would: two commands, with a passphrase nobody will need again."""
    keys = places.folder / "keys"
    secret = secrets.token_urlsafe(24)
    phrase = places.folder / "passphrase"
    phrase.write_text(secret + "\n")
    with steps.step("make a repository"):
        words = ("--keys-dir", keys, "--passphrase-file", phrase)
        made = fixture.remetal(fixture.Made, "init", *fixture.words(store.owner), *words)
    with steps.step("capture") as remark:
        chosen: list[str | Path] = [word for copy in copies for word in ("--disk", copy)]
        for copy, disk in zip(copies, disks, strict=True):
            chosen += ["--serial", f"{copy}={disk.serial}"]
            if disk.device is not None:
                chosen += ["--device", f"{copy}={disk.device}"]
        chosen += ["--name", name, "--credential", made.credential]
        captured = fixture.remetal(
            fixture.Captured, "capture", *fixture.words(store.machine), *chosen
        )
        remark.size = captured.used_bytes
        remark.text = f"{format_size(captured.stored_bytes)} stored"
    sheet.note(used_bytes=captured.used_bytes, stored_bytes=captured.stored_bytes)
    return open_subject(store.rescue, captured.image, made.recovery_key, secret)


def open_subject(place: Place, reference: str, recovery_key: Path, secret: str) -> Subject:
    """Open a saved machine for a drill.

    Args:
        place: of the repository.
        reference: of the image.
        recovery_key: file that opens it.
        secret: its passphrase.

    Raises:
        NotARepository, UnknownImage, SecretError: as each says.
    """
    repository = Repository.open(place)
    locked = LockedRecoveryKey.read(recovery_key)
    check_owner(locked.repository, repository.id, f"the recovery key {recovery_key}")
    unlocked = Unlocked(repository, locked.unlock(secret))
    image = open_image(repository, reference, unlocked, lambda _: None)
    return Subject(
        opened=image,
        repository=place,
        image=image.image.id,
        used_bytes=image.summary.used_bytes,
        stored_bytes=image.summary.stored_bytes,
        recovery_key=recovery_key,
        secret=secret,
    )


def _order(subject: Subject, iso: Path) -> Order:
    return Order(
        repository=subject.repository,
        image=subject.image,
        disks=tuple(disk.id for disk in subject.machine.disks),
        used_bytes=subject.used_bytes,
        recovery_key=subject.recovery_key,
        secret=subject.secret,
        iso=iso,
    )


def _medium(choices: Choices, places: Places, steps: Steps, sheet: _Sheet) -> Path:
    if choices.iso is not None:
        sheet.note(medium_bytes=choices.iso.stat().st_size)
        return choices.iso
    with steps.step("build the medium") as remark:
        iso = places.folder / "rescue.iso"
        made = build_medium(iso, MediumConfig(), choices.cache, steps.say)
        remark.size = made.size
    sheet.note(medium_bytes=made.size)
    return iso


def _conduct(
    name: str,
    choices: Choices,
    settings: Settings,
    work: Callable[[Places, Steps, _Sheet], Verdict],
) -> Result:
    """Run a drill in a folder of its own; whatever goes wrong becomes its result."""
    started = Result(
        name=name,
        firmware=choices.firmware.value if choices.firmware else "-",
        medium=choices.medium.value,
        accelerator=settings.accelerator.name,
        outcome=Outcome.FAILED,
        proof="",
        variation=choices.variation.value,
    )
    sheet = _Sheet(started)
    varied = "" if choices.variation is Variation.SAME else f" {choices.variation}"
    steps = Steps(f"{name}{varied}", settings.say)
    places = _make_places(settings, name, choices)
    try:
        verdict = work(places, steps, sheet)
    except RemetalError as error:
        sheet.note(proof=f"{error.message} {error.hint}".strip())
    except OSError as error:  # a full disk, say: the drills that follow may still go well
        sheet.note(proof=str(error))
    except BaseException:
        job.forget_secrets(places.job)
        if settings.keep is None:
            shutil.rmtree(places.folder)
        raise
    else:
        sheet.note(
            outcome=verdict.outcome,
            proof=verdict.text,
            rto=verdict.rto,
            facts=verdict.facts,
            differences=verdict.differences,
            plan=verdict.plan,
        )
    sheet.note(steps=steps.done)
    return _clean(places, sheet, settings)


def _make_places(settings: Settings, name: str, choices: Choices) -> Places:
    if settings.keep is None:
        made = tempfile.mkdtemp(prefix=f"remetal-drill-{name}-", dir=scenario.roomy())
        return Places(Path(made))
    varied = "" if choices.variation is Variation.SAME else f"-{choices.variation}"
    folder = settings.keep / f"{name}{varied}"
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError as error:
        raise OutputExists(
            f"{folder} is there already", hint="Name another folder with --keep."
        ) from error
    return Places(folder)


def _clean(places: Places, sheet: _Sheet, settings: Settings) -> Result:
    """Leave behind what the module's docstring says, and say where."""
    job.forget_secrets(places.job)
    if settings.keep is None:
        if sheet.result.outcome is not Outcome.FAILED:
            shutil.rmtree(places.folder)
            return sheet.result
        _leave_evidence(places)
    sheet.note(kept=places.folder)
    report.write([sheet.result], places.folder)
    return sheet.result


def _leave_evidence(places: Places) -> None:
    """Remove what is large or secret: disks, medium, repository, keys."""
    kept = {".log", ".png", ".json", ".svg"}
    for path in places.folder.iterdir():
        if path.is_dir() and path != places.job:
            shutil.rmtree(path)
        elif path.is_file() and path.suffix not in kept:
            path.unlink()
