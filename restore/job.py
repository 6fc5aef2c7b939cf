"""One restore from an opened image to the last step: what `restore` and `rescue` share."""

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from imager.console import Output
from imager.errors import RepositoryError
from imager.repository.repository import Repository
from imager.repository.retrieval import OpenImage, Unlocked, open_image
from restore import targets, without
from restore.boot_code import disks_with_boot_code
from restore.circumstances import Wishes
from restore.execute import Outcome, execute
from restore.fit_planner import Fitter
from restore.log import RestoreLog
from restore.match import match, resolve
from restore.plan import Plan
from restore.planner import make_plan
from restore.steps import Subject


def open_saved(
    out: Output, repository: Repository, reference: str, unlocked: Unlocked, log: RestoreLog
) -> OpenImage:
    """Open the image that a person means.

    Raises:
        UnknownImage, ObjectDamaged, UntrustedObject: as `open_image` says.
    """
    started = time.monotonic()
    opened = open_image(
        repository,
        reference,
        unlocked,
        lambda problem: out.remark(f"warning: {problem.error.message}"),
    )
    log.record(Outcome("open-image", opened.image.id[:12], time.monotonic() - started))
    return opened


def prepare(
    repository: Repository,
    opened: OpenImage,
    mapping: Mapping[str, Path],
    wishes: Wishes,
    log: RestoreLog,
) -> Plan:
    """Match disks and make the plan. Nothing is written to any of them.

    Raises:
        UsageError: the image has no disk of a name that is given.
        TargetError: and those below it, when a disk can't take what was saved, or is needed and to
            be left out.
        NoRoom: the filesystem of a target file is too full.
        ObjectDamaged: the image contradicts itself.
    """
    started = time.monotonic()
    opened.check_presence()
    machine = opened.machine
    left_out = resolve(machine, wishes.leave_out, mapping)
    less = without.judge(machine, left_out, disks_with_boot_code(opened) if left_out else ())
    fitter = Fitter(opened, wishes)
    seen = replace(
        targets.survey(repository.backend.folders, mapping),
        room=fitter.problem,
        advise=partial(_advise, opened, left_out),
    )
    found = match(machine, seen, left_out)
    subject = Subject(
        repository=repository.id.hex(),
        image=opened.image.id,
        machine=opened.machine.name,
        taken=opened.summary.finished,
    )
    plan = make_plan(
        opened,
        found,
        subject=subject,
        wishes=wishes,
        fitter=fitter,
        surroundings=targets.surroundings(machine, found, seen),
        without=less,
    )
    targets.check_room(plan)
    log.planned(plan)
    log.record(Outcome("plan", plan.machine, time.monotonic() - started))
    return plan


def _advise(opened: OpenImage, left_out: Collection[str], missing: Collection[str]) -> str:
    """Return how a restore could do without more disks; nothing where that can't be known."""
    names = {*left_out, *missing}
    with suppress(RepositoryError):
        return without.advise(opened.machine, names, disks_with_boot_code(opened))
    return ""


def carry_out(out: Output, opened: OpenImage, plan: Plan, log: RestoreLog) -> None:
    """Do what the plan says, with progress and a log.

    Raises:
        RemetalError: as `restore.execute.execute` says.
    """

    def conclude() -> str:
        """Return the log as it will be when its own writing is the last step."""
        log.finish()
        return log.text()

    with out.progress("restore", plan.compared + plan.written + plan.verified) as advance:
        execute(
            plan,
            opened,
            advance=advance,
            record=log.record,
            measure=log.measure,
            log=conclude,
            announce=out.remark,
        )
    log.finish()
