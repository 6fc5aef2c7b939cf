"""What the rescue medium asks a person, from the first question to the restored machine.

It follows one line: repository, recovery key, image, disks, plan, agreement, result. Nothing is
written to a disk before the word `overwrite` is typed under the plan, and after it the serial number
of each foreign disk.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from imager import blockdev
from imager.commands.secrets import ask_pages, load_recovery_key, remark_problems
from imager.errors import (
    RemetalError,
    SecretError,
    TargetError,
    TargetTooSmall,
    UnsupportedFormat,
)
from imager.layout.machine import Machine
from imager.repository.backend.endpoint import is_remote
from imager.repository.image import SealedImage
from imager.repository.repository import Repository
from imager.repository.retrieval import OpenImage, Unlocked
from imager.units import format_duration, format_size
from restore import foreign, job
from restore.boot_steps import RepairInitramfs
from restore.circumstances import Wishes
from restore.console_ui import repositories
from restore.console_ui.repositories import Found
from restore.console_ui.stores import ChooseAnother, Stores
from restore.console_ui.terminal import AGAIN, SHELL, LeaveToShell, StartAgain, Terminal
from restore.log import DEFAULT_PATH, RestoreLog
from restore.match import describe
from restore.medium import RUN, AtEnd, Medium
from restore.plan import Plan
from restore.target import Target

OVERWRITE: Final = "overwrite"
_DISKS: Final = "disks"
_ANEW: Final = "anew"
_DRIVERS: Final = "drivers"
_DELTA: Final = "delta"
_FIT: Final = "fit"
# What can be changed under a plan: field of `Wishes`, and what it means.
_WISHES: Final = {
    "verify": ("verify_written", "read everything back afterwards"),
    _DELTA: ("delta", "write only what differs on these disks"),
    _DRIVERS: ("boot_repair", "let the system find these disks and network cards"),
    _ANEW: ("anew", "begin from the start, not where the last restore stopped"),
    _FIT: ("fit", "shrink what has room on a smaller disk, make anew what counts in sectors"),
}
_LOOK: Final = "look"
_LEAVE: Final = "leave"
_PATH: Final = "path"
_PAGES: Final = "pages"
_OTHER_PLACES: Final = {
    _LOOK: "look again, after attaching a disk",
    _PATH: "give the place of a repository: a path, or ssh://, sftp://, s3://",
}


class Dialogue:
    """Leads a person through a restore.

    Args:
        terminal: where the person is.
        medium: what the medium says of itself.
        look: searches for repositories and recovery keys.
        log_path: where the log goes.
    """

    def __init__(
        self,
        terminal: Terminal,
        medium: Medium,
        look: Callable[[list[Path]], Found] = repositories.look,
        log_path: Path = DEFAULT_PATH,
    ) -> None:
        self._terminal = terminal
        self._medium = medium
        self._look = look
        self._log_path = log_path
        self._stores = Stores(terminal, medium)

    def run(self) -> AtEnd:
        """Ask, restore, and return what the person wants then."""
        say = self._terminal.say
        say()
        say(self._medium.title)
        say(f"remetal {self._medium.version}. Nothing is written to any disk before you agree.")
        while True:
            try:
                return self._restore()
            except LeaveToShell:
                say("`remetal rescue` starts this again.")
                return AtEnd.SHELL
            except StartAgain:
                continue
            except RemetalError as error:
                self._explain(error)
                try:
                    self._terminal.choose("What now?", [], {AGAIN: "start from the first question"})
                except StartAgain:
                    continue
                except LeaveToShell:
                    return AtEnd.SHELL

    def _restore(self) -> AtEnd:
        repository, found = self._choose_repository()
        unlocked = self._unlock(repository, found)
        image = self._choose_image(repository, unlocked)
        log = RestoreLog(self._log_path)
        with log.watch():
            opened = job.open_saved(self._terminal.out, repository, image.id, unlocked, log)
            plan = self._agree(repository, opened, log)
            job.carry_out(self._terminal.out, opened, plan, log)
        return self._finish(plan, log)

    def _choose_repository(self) -> tuple[Repository, Found]:
        local = [Path(place) for place in self._medium.repositories if not is_remote(place)]
        remote = [place for place in self._medium.repositories if is_remote(place)]
        while True:
            self._terminal.say()
            self._terminal.say("Looking for repositories on the attached disks ...")
            found = self._look([*local, RUN / "repository"])
            options = [*map(str, found.repositories), *remote]
            if options:
                chosen = self._terminal.choose("Repositories:", options, _OTHER_PLACES)
            else:
                self._terminal.say("No repository was found. Attach the disk that holds it,")
                self._terminal.say("or give its place.")
                chosen = self._terminal.choose("What now?", [], _OTHER_PLACES)
            if chosen == _LOOK:
                continue
            place = (
                self._terminal.ask("Place of the repository")
                if isinstance(chosen, str)
                else options[chosen]
            )
            try:
                if is_remote(place):
                    return self._stores.open(place, found), found
                return Repository.open(place), found
            except ChooseAnother:
                continue
            except RemetalError as error:
                self._explain(error)

    def _unlock(self, repository: Repository, found: Found) -> Unlocked:
        own = [self._medium.recovery_key] if self._medium.recovery_key else []
        keys = [*own, *found.recovery_keys]
        while True:
            self._terminal.say()
            chosen = self._terminal.choose(
                "Recovery keys:" if keys else "No recovery key was found.",
                [str(key) for key in keys],
                {_PATH: "give the path of another one", _PAGES: "type or scan recovery pages"},
            )
            try:
                if chosen == _PAGES:
                    remark_problems(self._terminal.out, repository)
                    self._terminal.say(f"While words are asked for: /{AGAIN}, /{SHELL}.")
                    key = ask_pages(self._terminal.say, self._terminal.ask_words)
                    return Unlocked(repository, key)
            except SecretError as error:
                self._explain(error)
                continue
            path = (
                Path(self._terminal.ask("Path of the recovery key"))
                if isinstance(chosen, str)
                else keys[chosen]
            )
            try:
                return load_recovery_key(
                    self._terminal.out, repository, path, None, self._stores.passphrases
                )
            except (SecretError, UnsupportedFormat) as error:
                self._explain(error)

    def _choose_image(self, repository: Repository, unlocked: Unlocked) -> SealedImage:
        images, problems = repository.images(unlocked.keys)
        for problem in problems:
            self._terminal.say(f"Damaged: {problem.error.message}")
        images.reverse()
        if not images:
            raise RemetalError("this repository holds no image", hint="Choose another repository.")
        self._terminal.say()
        chosen = self._terminal.choose(
            "Images, the newest first:", [_describe_image(image) for image in images]
        )
        assert isinstance(chosen, int)  # noqa: S101  no other words were offered
        return images[chosen]

    def _agree(self, repository: Repository, opened: OpenImage, log: RestoreLog) -> Plan:
        mapping: dict[str, Path] = {}
        wishes = Wishes(boot_entries=True, boot_repair=True)
        while True:
            self._terminal.say()
            try:
                plan = job.prepare(repository, opened, mapping, wishes, log)
            except TargetError as error:
                self._explain(error)
                if error.would_fit and self._may_fit(error):
                    wishes = replace(wishes, fit=True, delta=False)
                else:
                    mapping, wishes = self._choose_disks(opened.machine, wishes)
                continue
            self._terminal.page(plan.lines())
            answer = self._ask_agreement(plan, wishes)
            if answer == OVERWRITE:
                for target in plan.targets:
                    if target.foreign:
                        self._ask_name(target)
                return plan
            if answer.lower() == _DISKS:
                mapping, wishes = self._choose_disks(opened.machine, wishes)
            if answer.lower() in _changeable(plan, wishes):
                wish = _WISHES[answer.lower()][0]
                changed: dict[str, Any] = {wish: not getattr(wishes, wish)}
                wishes = replace(wishes, **changed)

    def _ask_agreement(self, plan: Plan, wishes: Wishes) -> str:
        self._terminal.say()
        self._terminal.say("This overwrites:")
        for target in plan.targets:
            self._terminal.say(f"  {target.describe()}")
        words = _changeable(plan, wishes)
        for word in words:
            wish, meaning = _WISHES[word]
            self._terminal.say(f"{word}: {meaning}: {'yes' if getattr(wishes, wish) else 'no'}")
        return self._terminal.ask(
            f"Type {OVERWRITE} to start, {_DISKS} to choose other disks, "
            f"{', '.join(words[:-1])} or {words[-1]} to change that, {AGAIN}, {SHELL}"
        )

    def _may_fit(self, error: TargetError) -> bool:
        """Ask whether what stands against a disk may be changed; the plan that follows says how."""
        is_size = isinstance(error, TargetTooSmall)
        what = "shrink what has room" if is_size else "make anew what counts in sectors"
        answer = self._terminal.choose(
            "What now?", [], {_FIT: f"{what}, and see the plan", _DISKS: "choose other disks"}
        )
        return answer == _FIT

    def _ask_name(self, target: Target) -> None:
        """Have a foreign disk named.

        Raises:
            NotConfirmed: something else was typed.
        """
        self._terminal.say()
        self._terminal.say(target.describe())
        self._terminal.say(foreign.describe(target))
        foreign.check_answer(target, self._terminal.ask(foreign.question(target)))

    def _choose_disks(self, machine: Machine, wishes: Wishes) -> tuple[dict[str, Path], Wishes]:
        """Return which disk takes each saved one, and the wishes with those that are left out."""
        mapping: dict[str, Path] = {}
        left_out: list[str] = []
        words = {_LOOK: "look again, after attaching one"}
        if len(machine.disks) > 1:
            words[_LEAVE] = "leave it out, where the machine comes up without it"
        for saved in machine.disks:
            disks = blockdev.list_disks()
            options = [
                describe(disk.path, disk.identity) + (" [in use]" if disk.usage else "")
                for disk in disks
            ]
            self._terminal.say()
            chosen = self._terminal.choose(
                f"Which disk takes {saved.id}, saved from "
                f"{describe(Path(saved.origin), saved.identity)}?",
                options,
                words,
            )
            if chosen == _LOOK:
                return self._choose_disks(machine, wishes)
            if isinstance(chosen, str):
                left_out.append(saved.id)
            else:
                mapping[saved.id] = disks[chosen].path
        return mapping, replace(wishes, leave_out=tuple(left_out))

    def _finish(self, plan: Plan, log: RestoreLog) -> AtEnd:
        say = self._terminal.say
        say()
        for outcome in log.outcomes:
            for note in outcome.notes:
                say(f"{outcome.subject}: {note}")
        seconds = sum(outcome.seconds for outcome in log.outcomes)
        verified = "restored and verified" if plan.verified else "restored"
        say(f"{plan.machine} is {verified}, in {format_duration(seconds)}.")
        say(f"The log is in {log.path}; it is gone when this system ends.")
        try:
            how = self._terminal.choose(
                "Take the medium out before the machine starts again. What now?",
                [],
                {AtEnd.REBOOT: "start again", AtEnd.POWEROFF: "switch off"},
            )
        except (LeaveToShell, StartAgain):
            return AtEnd.SHELL
        return AtEnd(str(how))

    def _explain(self, error: RemetalError) -> None:
        self._terminal.say()
        self._terminal.say(f"It did not work: {error.message}")
        if error.hint:
            self._terminal.say(error.hint)


def _changeable(plan: Plan, wishes: Wishes) -> list[str]:
    """Return the words that change something about a plan."""
    means_nothing = set()
    if plan.resume is None and not wishes.anew:
        means_nothing.add(_ANEW)
    repairs = any(isinstance(step, RepairInitramfs) for step in plan.steps)
    if wishes.boot_repair and not repairs:
        means_nothing.add(_DRIVERS)
    if not wishes.fit:
        means_nothing.add(_FIT)  # it is offered where a disk is too small
    if plan.is_fitted:
        means_nothing.add(_DELTA)
    return [word for word in _WISHES if word not in means_nothing]


def _describe_image(image: SealedImage) -> str:
    stored = datetime.fromtimestamp(image.modified, UTC).strftime("%Y-%m-%d %H:%M UTC")
    used = format_size(image.summary.used_bytes)
    return f"{image.summary.machine_name}, {stored}, {used}, {image.id[:12]}"
