"""The heart of a drill: the real medium restores onto blank disks, and the disks start alone."""

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from imager import process
from imager.errors import DrillError, DrillFailed, RemetalError
from imager.repository.backend.place import Place
from imager.units import KIB, MIB
from restore.drill import evidence, job
from restore.drill.console_tail import ConsoleTail
from restore.drill.qemu import Vm
from restore.drill.reach import Reach, reach
from restore.drill.report import Outcome
from restore.drill.scenario import BlankDisk, Places, Scenario
from restore.drill.steps import Say, Step, Steps
from restore.drill.variation import AS_IT_WAS, Expectation
from restore.drill.vm_spec import Accelerator, VmSpec

# Limits for what hangs, not estimates: a slow, busy host must not fail a good drill.
_RESCUE_LIMIT: Final = 1200.0
_SLOWEST_RESTORE: Final = 1 * MIB  # bytes a second
_PROOF_LIMIT: Final = 900.0

_WORTH_A_LINE: Final = 1.0  # seconds
_LOOK: Final = 0.05  # seconds between two looks at the disks
_LEAST_WRITTEN: Final = 1 * MIB  # by a restore before its power is cut
_FOREIGN: Final = 64 * KIB
_REPOSITORY: Final = "REPOSITORY"  # label of the filesystem that holds it on a disk


Compare = Callable[[Sequence[Path]], tuple[evidence.Difference, ...]]


@dataclass(frozen=True, slots=True)
class Order:
    """What is restored, and with what.

    Attributes:
        repository: where it is.
        image: id.
        disks: ids of the saved disks, in order.
        used_bytes: of the image.
        recovery_key: file.
        secret: its passphrase.
        iso: the rescue medium.
        special: what it says beside the usual.
    """

    repository: Place
    image: str
    disks: tuple[str, ...]
    used_bytes: int
    recovery_key: Path
    secret: str
    iso: Path
    special: job.Special = job.USUAL


@dataclass(frozen=True, slots=True)
class Settings:
    """How drills run.

    Attributes:
        accelerator: for the guests.
        say: receives lines of progress.
        verbose: say every line of the guests' consoles, too.
        keep: folder that keeps everything, or None.
        accept_screen: a still screen counts when nothing better shows.
    """

    accelerator: Accelerator
    say: Say
    verbose: bool = False
    keep: Path | None = None
    accept_screen: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the restored machine showed.

    Attributes:
        text: for people.
        outcome: how it ended.
        rto: seconds from power-on of the rescue to the proof; None without one.
        facts: how many were compared.
        differences: among them.
        plan: of the restore, line by line.
    """

    text: str
    outcome: Outcome
    rto: float | None
    facts: int = 0
    differences: tuple[evidence.Difference, ...] = ()
    plan: tuple[str, ...] = ()


class Drill:
    """One drill while it runs.

    Args:
        scenario: what to do.
        settings: how.
        places: where.
        steps: records them; may hold steps that were done before.
        compare: compares the restored disks with the captured ones before the first start; None
            where these are not at hand.
    """

    def __init__(
        self,
        scenario: Scenario,
        settings: Settings,
        places: Places,
        steps: Steps,
        compare: Compare | None = None,
    ) -> None:
        self._scenario = scenario
        self._settings = settings
        self._places = places
        self._steps = steps
        self._compare = compare

    def bring_back(
        self, order: Order, before: evidence.Expected | None, expects: Expectation = AS_IT_WAS
    ) -> Verdict:
        """Restore onto blank disks from the real medium, start them alone, and wait for proof.

        Args:
            order: what to restore.
            before: what the machine must say about itself; None when it says nothing.
            expects: what must come of it.

        Raises:
            DrillFailed: the restore failed.
            DrillError: a machine did not do what it must.
        """
        for index, disk in enumerate(self._scenario.disks):
            with self._places.disk(index).open("xb") as file:
                file.truncate(disk.size)
        if self._scenario.repository is None:
            way = reach(order.repository)
        else:
            way = self._move_repository(order, self._scenario.repository)
            with self._steps.step("refuse the repository's disk"):
                self._name_repository(order, way)
        self._place_order(order, way, order.special)
        power_on = self._steps.now()
        if expects.refusal is not None:
            return self._refuse(order, way, expects.refusal)
        bystanders = {
            self._places.stale: self._scenario.stale,
            self._places.repository_disk: self._scenario.repository,
        }
        with _untouched([path for path, disk in bystanders.items() if disk is not None]):
            plan = self._rescue(order, way, power_on)
        changed: tuple[evidence.Difference, ...] = ()
        if self._compare is not None:
            with self._steps.step("compare the disks, byte by byte"):
                changed = expects.unexpected(self._compare(self._disks()))
        verdict = replace(self._prove(before, power_on, expects), plan=plan)
        if not changed:
            return verdict
        text = "the disks do not hold what was captured: every difference is named below"
        differences = (*changed, *verdict.differences)
        return replace(verdict, text=text, outcome=Outcome.FAILED, differences=differences)

    def _disks(self) -> list[Path]:
        return [self._places.disk(index) for index in range(len(self._scenario.disks))]

    def _place_order(self, order: Order, way: Reach, special: job.Special) -> None:
        secret = order.secret
        job.place_order(self._places.job, way, order.image, order.recovery_key, secret, special)

    def _move_repository(self, order: Order, disk: BlankDisk) -> Reach:
        """Put the repository on a disk, and return the way there."""
        with self._steps.step("put the repository on a disk"):
            image, folder = self._places.repository_disk, Path(order.repository.location)
            words = ("-t", "ext4", "-L", _REPOSITORY, "-d", folder)
            process.run("mke2fs", "-q", *words, image, f"{disk.size // KIB}k")
        return Reach(".", filesystem=f"LABEL={_REPOSITORY}")

    def _name_repository(self, order: Order, way: Reach) -> None:
        """Order the restore to overwrite the disk that the repository lies on; it must not.

        Raises:
            DrillError: it did.
        """
        scenario = self._scenario
        assert scenario.repository is not None  # noqa: S101  who calls has looked
        device = f"/dev/disk/by-id/virtio-{scenario.repository.serial}"
        self._place_order(order, way, job.Special({order.disks[0]: device}))
        disks = [*self._disks(), self._places.repository_disk]
        self._expect_refusal(order, way, "holds the repository", disks)

    def _refuse(self, order: Order, way: Reach, refusal: str) -> Verdict:
        """Let the restore refuse, and make sure that it wrote nothing."""
        disks = self._disks()
        for disk in disks:
            _fill(disk)
        message = self._expect_refusal(order, way, refusal, disks)
        return Verdict(f"{message}; no disk was touched", Outcome.REFUSED, None)

    def _expect_refusal(self, order: Order, way: Reach, refusal: str, disks: Sequence[Path]) -> str:
        """Run a rescue that must refuse and write nothing, and return how it refuses.

        Raises:
            DrillFailed: it refuses for another reason.
            DrillError: it does not, or writes.
        """
        try:
            with _untouched(disks):
                self._rescue(order, way, self._steps.now())
        except DrillFailed as error:
            if not re.search(refusal, error.message):
                raise
            return error.message
        raise DrillError(f"the restore did what it must refuse ({refusal})")

    def _rescue(self, order: Order, way: Reach, power_on: float) -> tuple[str, ...]:
        """Restore, and return the plan."""
        spec = self._scenario.rescue(self._places, order.iso, way)
        limit = _RESCUE_LIMIT + order.used_bytes / _SLOWEST_RESTORE
        for share in self._scenario.cuts:
            with self._steps.step(f"power cut at {share:.0%}", part_of_rto=True):
                self._cut(spec, int(share * order.used_bytes), limit)
        with self._steps.step("rescue", part_of_rto=True, keep=False):
            with self._machine(spec, "rescue") as vm:
                reason = vm.wait_exit(limit)
            if reason != "guest-shutdown":
                raise DrillError(f"the rescue system ended by {reason} instead of a power-off")
            off = self._steps.now()
            done, written = job.read_report(self._places.job)
        # The report is the last thing the restorer writes, and by this host's clock.
        reported = min(max(self._steps.at(written), power_on), off)
        at = max(reported - sum(step.seconds for step in done.steps), power_on)
        self._add("rescue: start of the medium", power_on, at - power_on)
        for name, seconds, size in _totals(done.steps):
            self._add(f"rescue: {name}", at, seconds, size)
            at += seconds
        self._add("rescue: power-off", reported, off - reported)
        return done.plan

    def _cut(self, spec: VmSpec, written: int, limit: float) -> None:
        """Start the rescue, and cut the power when so many bytes are on the disks, or a few more.

        Raises:
            DrillError: it ended before that, or takes too long.
        """
        wanted = max(written, self._allocated() + _LEAST_WRITTEN)
        with self._machine(spec, "rescue") as vm:
            deadline = time.monotonic() + limit
            while self._allocated() < wanted:
                if not vm.running or time.monotonic() > deadline:
                    raise vm.error(f"{wanted} bytes were not written before it ended")
                time.sleep(_LOOK)  # a file that grows makes no event

    def _allocated(self) -> int:
        return sum(disk.stat().st_blocks * 512 for disk in self._disks())

    def _add(self, name: str, start: float, seconds: float, size: int = 0) -> None:
        self._steps.add(Step(name, start, seconds, size or None, part_of_rto=True))

    def _prove(
        self, before: evidence.Expected | None, power_on: float, expects: Expectation
    ) -> Verdict:
        spec = self._scenario.restored(self._places)
        with contextlib.ExitStack() as stack:
            with self._steps.step("restored machine: start", part_of_rto=True):
                vm = stack.enter_context(self._machine(spec, "restored"))
                proof = evidence.wait_for_sign(
                    vm,
                    _PROOF_LIMIT,
                    self._places.folder,
                    accept_screen=self._settings.accept_screen and before is None,
                )
            after = None
            if before is not None:
                with self._steps.step("restored machine: its facts", part_of_rto=True):
                    after = evidence.wait_for_facts(vm, _PROOF_LIMIT)
            rto = self._steps.now() - power_on
            vm.screenshot(self._places.screenshot("restored"))
        if before is None or after is None:
            return Verdict(proof.text, Outcome.WEAK if proof.weak else Outcome.PROVEN, rto)
        differences = expects.unexpected(evidence.compare_all(before, after))
        number = evidence.count(before.facts)
        if differences:
            text = "it is up, and not what it was: every difference is named below"
            return Verdict(text, Outcome.FAILED, rto, number, differences)
        return Verdict(f"all {number} facts are what they were", Outcome.PROVEN, rto, number)

    @contextlib.contextmanager
    def _machine(self, spec: VmSpec, name: str) -> Iterator[Vm]:
        """Run a machine; a picture of its screen is taken when something goes wrong."""

        def line(text: str) -> None:
            if self._settings.verbose:
                self._steps.say(f"| {text}")

        tail = ConsoleTail(line, self._steps.hint)
        with Vm(spec, self._settings.accelerator, listener=tail) as vm:
            try:
                yield vm
            except RemetalError:
                if vm.running:
                    with contextlib.suppress(RemetalError):
                        vm.screenshot(self._places.screenshot(name))
                raise


def _fill(disk: Path) -> None:
    """Give a blank disk content of somebody else, at both ends and in between."""
    size = disk.stat().st_size
    with disk.open("r+b") as file:
        for start in range(0, size, max(size // 8, _FOREIGN)):
            file.seek(min(start, size - _FOREIGN))
            file.write(os.urandom(_FOREIGN))


@contextlib.contextmanager
def _untouched(disks: Sequence[Path]) -> Iterator[None]:
    """Make sure that the body writes nothing to some disks, whatever becomes of it.

    Raises:
        DrillError: it did.
    """
    before = [_digest(disk) for disk in disks]
    try:
        yield
    finally:
        for disk, digest in zip(disks, before, strict=True):
            if _digest(disk) != digest:
                raise DrillError(f"{disk.name} was written, and must not be")


def _digest(disk: Path) -> str:
    with disk.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _totals(steps: Sequence[job.RescueStep]) -> Iterator[tuple[str, float, int]]:
    """Yield (name, seconds, bytes) of the restorer's steps, those of one name added up.

    What took less than a second in all is put together at the end.
    """
    rest = 0.0
    for name in dict.fromkeys(step.name for step in steps):
        parts = [step for step in steps if step.name == name]
        seconds = sum(step.seconds for step in parts)
        if seconds < _WORTH_A_LINE:
            rest += seconds
        else:
            yield name, seconds, sum(step.bytes or 0 for step in parts)
    yield "small steps", rest, 0
