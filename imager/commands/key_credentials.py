"""`remetal key list`, `key revoke`: credentials, and who they are."""

from datetime import UTC, datetime
from pathlib import Path

import click

from imager.commands.key_recipients import agree
from imager.commands.repository_argument import repository_argument
from imager.commands.secrets import (
    check_current,
    credential_option,
    load_group_keys,
    load_recovery_key,
    recovery_options,
)
from imager.console import Output, verb
from imager.repository.backend.place import Place
from imager.repository.header import StatementKind
from imager.repository.repository import Repository
from imager.upkeep import membership
from imager.upkeep.membership import RevocationOfCredential

_MAY = {
    StatementKind.CREDENTIAL: "capture",
    StatementKind.UPKEEP: "prune, hold, release or record drills",
}
_SAID = {
    StatementKind.HOLD: "hold",
    StatementKind.RELEASE: "release",
    StatementKind.DRILL: "drill",
    StatementKind.CONDEMNED: "condemnation",
    StatementKind.REMOVED: "removal",
}
KIND_WORDS = {StatementKind.CREDENTIAL: "capture", StatementKind.UPKEEP: "upkeep"}


@click.command("list", short_help="List recovery keys and credentials.")
@repository_argument()
@credential_option
@recovery_options
@verb
def list_keys(
    out: Output,
    repo: Place,
    credential: Path | None,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """List who can open images in REPO, and which credentials there are.

    \b
    Example:
      remetal key list /srv/images
    """
    repository = Repository.open(repo)
    keys = load_group_keys(out, repository, credential, recovery_key, passphrase_file)
    since = {
        entry.id: generation.number
        for generation in reversed(repository.trust.generations)
        for entry in generation.body.recipients
    }
    recipients = repository.trust.current.body.recipients
    known = membership.credentials(repository, keys)
    out.document(
        {
            "generation": repository.trust.current.number,
            "recipients": [
                {"id": entry.id, "label": entry.label, "generation": since[entry.id]}
                for entry in recipients
            ],
            "removed_recipients": list(repository.trust.current.body.revoked),
            "credentials": [
                {
                    "id": each.certificate.id.hex(),
                    "name": each.certificate.name,
                    "kind": KIND_WORDS[each.certificate.kind],
                    "created": each.certificate.created,
                    "images": len(each.images),
                    "last_image": _time(each.last) or None,
                    "revoked": each.revocation.created if each.revocation else None,
                    "reason": each.revocation.reason if each.revocation else None,
                }
                for each in known
            ],
            "problems": [problem.message for problem in repository.trust.problems],
        }
    )
    out.table(
        ("recovery key", "label", ">since generation"),
        [(entry.id[:12], entry.label, str(since[entry.id])) for entry in recipients],
    )
    out.say()
    out.table(
        ("credential", "name", "kind", "created", ">images", "last image", "revoked"),
        [
            (
                each.certificate.id.hex()[:12],
                each.certificate.name,
                KIND_WORDS[each.certificate.kind],
                each.certificate.created,
                str(len(each.images)),
                _time(each.last),
                f"{each.revocation.created}: {each.revocation.reason}" if each.revocation else "",
            )
            for each in known
        ],
    )


@click.command(short_help="End a credential: nothing it adds later is believed.")
@repository_argument()
@click.argument("credential")
@click.option("--reason", required=True, help="Why; everybody who lists the keys reads it.")
@click.option("--dry-run", is_flag=True, help="Show what would be, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@recovery_options
@verb
def revoke(
    out: Output,
    repo: Place,
    credential: str,
    reason: str,
    dry_run: bool,
    yes: bool,
    recovery_key: Path | None,
    passphrase_file: Path | None,
) -> None:
    """End a credential, by its name or id: nothing that it adds to REPO later is believed.

    \b
    Example:
      remetal key revoke /srv/images web1 --reason "web1 was taken over"
    """
    repository = Repository.open(repo)
    unlocked = load_recovery_key(out, repository, recovery_key, passphrase_file)
    check_current(unlocked)
    plan = membership.plan_revocation(repository, unlocked, credential, reason)
    undone = [
        _kept(plan),
        "Its holder keeps the group secret: names, times and sizes of images stay known to it.",
        "It can still put objects into the repository, if the storage lets it; close that there.",
    ]
    if plan.unread:
        names = ", ".join(problem.name for problem in plan.unread)
        undone.append(
            f"These can't be read, and stay unbelieved should it have signed them: {names}."
        )
    certificate = plan.credential.certificate
    result = {
        "dry_run": dry_run,
        "revoked": certificate.id.hex(),
        "name": certificate.name,
        "accepted": list(plan.body.accepted),
        "not_undone": undone,
    }
    out.document(result)
    out.say(f"Revokes the credential {certificate.name} ({certificate.id.hex()}).")
    out.say(f"It can't {_MAY[certificate.kind]} any more. What this does not undo:")
    for line in undone:
        out.say(f"  - {line}")
    if dry_run:
        return
    agree(out, yes)
    done = membership.revoke(repository, plan)
    out.document({**result, "accepted": list(done.body.accepted)})
    if done.body.accepted != plan.body.accepted:
        out.say(f"Meanwhile it signed more. {_kept(done)}")
    out.say("Done.")


def _kept(plan: RevocationOfCredential) -> str:
    """Return what of a credential's word stays believed."""
    if plan.credential.certificate.kind is StatementKind.CREDENTIAL:
        count = len(plan.credential.images)
        said = (
            "1 image that it signed so far stays"
            if count == 1
            else f"{count} images that it signed so far stay"
        )
        return f"{said} believed; should one be bad, use another."
    kinds = [
        f"{count} {_SAID.get(kind, 'other statement')}{'s' if count > 1 else ''}"
        for kind, count in sorted(plan.statements.items())
    ]
    if not kinds:
        return "It has said nothing so far."
    return (
        f"What it said so far stays believed: {', '.join(kinds)}; "
        "`remetal hold` and `remetal images` show what that means, and a new hold outweighs it."
    )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
