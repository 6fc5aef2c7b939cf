"""One tree of errors.

Libraries raise these and nothing else; only `imager.console` prints or exits.
Every class has an `id` (stable, for `--json`), an exit code of its own and a
hint: the next thing a tired person should do.

    RemetalError                    1
    ├── UsageError                  2   the command line itself
    ├── ConfigError                 3   a configuration file
    ├── ProgramError                4   an external program
    │   └── ProgramMissing          5
    ├── RepositoryError            10
    │   ├── NotARepository         11
    │   ├── RepositoryExists       12
    │   ├── UnsupportedFormat      13
    │   ├── ObjectMissing          14
    │   ├── ObjectDamaged          15   bytes are not what was written
    │   ├── UnknownImage           16
    │   ├── UntrustedObject        17   intact, but not signed by whom it must be
    │   ├── ChecksFailed           18   `check` found damage and named it
    │   └── RepairIncomplete       19   `repair` could not bring everything back, and named it
    ├── SecretError                20
    │   ├── WrongPassphrase        21
    │   ├── RecoveryKeyNeeded      22
    │   ├── CredentialNeeded       23
    │   └── WrongKey               24   a key of another repository
    ├── SourceError                30
    │   ├── NoSuchDisk             31
    │   ├── TruncatedSource        32
    │   ├── SourceInUse            33
    │   └── UnreadableSource       34
    ├── TargetError                40
    │   ├── TargetTooSmall         41
    │   ├── TargetInUse            42
    │   ├── AmbiguousTarget        43
    │   ├── ForbiddenTarget        44   holds the repository or the medium
    │   ├── NoTarget               45
    │   ├── WriteFailed            46
    │   ├── VerificationFailed     47
    │   ├── NotConfirmed           48
    │   ├── ForeignTarget          49   holds data that is not of the machine, and was not named
    │   └── DiskNeeded             59   the machine does not come up without a disk that is left out
    ├── OutputError                50
    │   ├── NoRoom                 51
    │   ├── OutputExists           52
    │   └── ObjectLocked           53   the store keeps it for now
    ├── LinkError                  54   the way to a store, whatever lies there
    │   ├── StoreUnreachable       55
    │   ├── StoreRefused           56   the store does not let these keys do it
    │   ├── UntrustedHost          57   another host key, or one that nobody vouches for
    │   └── MalformedAnswer        58   the other side does not speak as it must
    ├── MediumError                60
    ├── DrillError                 70
    │   └── DrillFailed            71   the drill ran, and the machine did not come back
    ├── ContentRemoved             80   what a running capture counted on went
    └── Interrupted               130
"""

from typing import ClassVar, Final


class RemetalError(Exception):
    """Anything remetal can say about what went wrong.

    Args:
        message: one sentence: what happened, and to what.
        hint: what to do next; the class's own hint when not given.
    """

    id: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint


class UsageError(RemetalError):
    """The command line asks for something that makes no sense."""

    id = "usage"
    exit_code = 2
    default_hint = "See --help for the form of this command."


class ConfigError(RemetalError):
    """A configuration file can't be read or holds something unknown."""

    id = "config"
    exit_code = 3


class ProgramError(RemetalError):
    """An external program failed; argv, exit code and stderr are kept."""

    id = "program-failed"
    exit_code = 4

    def __init__(
        self, argv: tuple[str, ...], returncode: int, stderr: str, *, hint: str | None = None
    ) -> None:
        tail = stderr.strip().splitlines()[-5:]
        reason = f"exit code {returncode}" if returncode >= 0 else f"killed by signal {-returncode}"
        text = f"`{' '.join(argv)}` failed with {reason}"
        super().__init__(text + (": " + " / ".join(tail) if tail else ""), hint=hint)
        self.argv = argv
        self.returncode = returncode
        self.stderr = stderr


class ProgramMissing(ProgramError):
    """An external program is not installed."""

    id = "program-missing"
    exit_code = 5

    def __init__(self, argv: tuple[str, ...]) -> None:
        super().__init__(argv, 127, "not found on this machine")
        self.hint = f"Install the Debian package that brings `{argv[0]}`, then run this again."


class RepositoryError(RemetalError):
    """Something about a repository as a whole."""

    id = "repository"
    exit_code = 10


class NotARepository(RepositoryError):
    """The place exists or not, but it is no repository."""

    id = "not-a-repository"
    exit_code = 11
    default_hint = "Check the path, or make one with `remetal init REPO`."


class RepositoryExists(RepositoryError):
    """`init` found something where it must not write."""

    id = "repository-exists"
    exit_code = 12
    default_hint = "Choose an empty or new place; nothing was changed."


class UnsupportedFormat(RepositoryError):
    """Written by a version of remetal that this one can't read."""

    id = "unsupported-format"
    exit_code = 13
    default_hint = "Use the version of remetal that wrote it, or a newer one."


class ObjectMissing(RepositoryError):
    """An object that must be there is not."""

    id = "object-missing"
    exit_code = 14
    default_hint = "`remetal check REPO` names every image that is touched."


class ObjectDamaged(RepositoryError):
    """An object's bytes are not the ones that were written."""

    id = "object-damaged"
    exit_code = 15
    default_hint = (
        "`remetal check REPO --ciphertext` names every image that is touched; "
        "bring the object back from another copy of the repository."
    )


class UnknownImage(RepositoryError):
    """No image of that name."""

    id = "unknown-image"
    exit_code = 16
    default_hint = "`remetal images REPO` lists what is there."


class UntrustedObject(RepositoryError):
    """Intact bytes, but not signed by anybody this repository trusts.

    Args:
        message: as for every error.
        hint: likewise.
        is_disowned: whether a credential signed it that was revoked, and whose revocation does not
            list it: the repository says itself that it is to be ignored.
    """

    id = "untrusted-object"
    exit_code = 17
    default_hint = "Someone who may not write here has written this; do not restore from it."

    def __init__(self, message: str, *, hint: str | None = None, is_disowned: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.is_disowned = is_disowned


class ChecksFailed(RepositoryError):
    """`check` found damage; what is touched was listed before."""

    id = "checks-failed"
    exit_code = 18


class RepairIncomplete(RepositoryError):
    """`repair` could not bring everything back; what is still touched was listed before."""

    id = "repair-incomplete"
    exit_code = 19


class SecretError(RemetalError):
    """Something about keys, credentials or passphrases."""

    id = "secret"
    exit_code = 20


class WrongPassphrase(SecretError):
    """The passphrase does not open this recovery key."""

    id = "wrong-passphrase"
    exit_code = 21
    default_hint = "Check the keyboard layout and try again; nothing was changed."


class RecoveryKeyNeeded(SecretError):
    """Opening an image needs a recovery key; a credential can't."""

    id = "recovery-key-needed"
    exit_code = 22
    default_hint = "Give the recovery key made by `remetal init` with --recovery-key FILE."


class CredentialNeeded(SecretError):
    """Adding an image needs a capture credential."""

    id = "credential-needed"
    exit_code = 23
    default_hint = "Give the credential made by `remetal init` with --credential FILE."


class WrongKey(SecretError):
    """A key or credential that belongs to another repository."""

    id = "wrong-key"
    exit_code = 24


class SourceError(RemetalError):
    """Something about a disk to be captured."""

    id = "source"
    exit_code = 30


class NoSuchDisk(SourceError):
    """No disk or disk file of that name."""

    id = "no-such-disk"
    exit_code = 31
    default_hint = "`lsblk` lists the disks of this machine; a disk file is given by its path."


class TruncatedSource(SourceError):
    """The disk ends before the layout written on it does."""

    id = "truncated-source"
    exit_code = 32
    default_hint = "Copy the disk file again, whole; no image was made."


class SourceInUse(SourceError):
    """Mounted for writing: an image of it would be no single instant."""

    id = "source-in-use"
    exit_code = 33


class UnreadableSource(SourceError):
    """The disk gives read errors."""

    id = "unreadable-source"
    exit_code = 34
    default_hint = "The disk may be failing: no image was made, and nothing was written to it."


class TargetError(RemetalError):
    """About a disk to be rewritten, as a rule before the first write; `would_fit`: --fit would do."""

    id = "target"
    exit_code = 40
    would_fit = False


class TargetTooSmall(TargetError):
    """The saved disk does not fit."""

    id = "target-too-small"
    exit_code = 41
    default_hint = "Use a disk at least as large as the saved one; nothing was written."


class TargetInUse(TargetError):
    """Mounted, or held by md, LVM, swap or another program."""

    id = "target-in-use"
    exit_code = 42
    default_hint = "Unmount or stop what uses it, or choose another disk; nothing was written."


class AmbiguousTarget(TargetError):
    """Two disks could both be meant."""

    id = "ambiguous-target"
    exit_code = 43
    default_hint = "Say which one with --map SAVED=TARGET; nothing was written."


class ForbiddenTarget(TargetError):
    """The disk that carries the repository, the medium or this system."""

    id = "forbidden-target"
    exit_code = 44
    default_hint = "Choose another disk; nothing was written."


class NoTarget(TargetError):
    """No disk here can take a saved disk."""

    id = "no-target"
    exit_code = 45
    default_hint = "Attach a disk, or name one with --map SAVED=TARGET; nothing was written."


class WriteFailed(TargetError):
    """The target disk refused a write."""

    id = "write-failed"
    exit_code = 46
    default_hint = "The target disk may be failing; try another one. The image is untouched."


class VerificationFailed(TargetError):
    """What was read back from the target is not what was written."""

    id = "verification-failed"
    exit_code = 47
    default_hint = "The target disk lies or is failing; use another one. The image is untouched."


class NotConfirmed(TargetError):
    """The person at the keyboard did not agree to the plan."""

    id = "not-confirmed"
    exit_code = 48
    default_hint = "Nothing was written."


class ForeignTarget(TargetError):
    """A disk that nobody recognised holds data of something else, and nobody has named it."""

    id = "foreign-target"
    exit_code = 49
    default_hint = (
        "If it is really meant: --overwrite-serial SERIAL, or choose another disk; nothing was "
        "written."
    )


class DiskNeeded(TargetError):
    """The machine does not come up without a saved disk that is to be left out."""

    id = "disk-needed"
    exit_code = 59
    default_hint = "Give it a disk, or leave out others; nothing was written."


class OutputError(RemetalError):
    """Something about a place this command writes to."""

    id = "output"
    exit_code = 50


class NoRoom(OutputError):
    """The place is full."""

    id = "no-room"
    exit_code = 51
    default_hint = "Free some room and run this again; nothing half-done was left behind."


class OutputExists(OutputError):
    """The output is there already and would be overwritten."""

    id = "output-exists"
    exit_code = 52
    default_hint = "Choose another name, or remove it first."


class ObjectLocked(OutputError):
    """The store does not let an object go yet, because it was told to keep it."""

    id = "object-locked"
    exit_code = 53
    default_hint = "Run this again when the store's lock has ended; nothing was lost."


class LinkError(RemetalError):
    """Something between here and a store; it says nothing about the objects that lie there."""

    id = "link"
    exit_code = 54


class StoreUnreachable(LinkError):
    """No answer: the name is unknown, nobody listens, the link hangs or broke, or the store is ill.

    It was tried again for as long as the backend states before this was raised.
    """

    id = "store-unreachable"
    exit_code = 55
    default_hint = (
        "Check the network and that the store runs, then run this again; nothing is lost."
    )


class StoreRefused(LinkError):
    """The store answers, and does not let these keys do this."""

    id = "store-refused"
    exit_code = 56
    default_hint = (
        "Check the keys that this machine shows to the store, and what they may do there."
    )


class UntrustedHost(LinkError):
    """Nobody vouches for the host that answers."""

    id = "untrusted-host"
    exit_code = 57


class MalformedAnswer(LinkError):
    """What came over the link is not what such a store says."""

    id = "malformed-answer"
    exit_code = 58
    default_hint = (
        "Something other than the store may be answering, such as a proxy or a login text."
    )


class MediumError(RemetalError):
    """The rescue medium can't be built or does not boot."""

    id = "medium"
    exit_code = 60


class DrillError(RemetalError):
    """The drill itself could not be run."""

    id = "drill"
    exit_code = 70


class DrillFailed(DrillError):
    """The drill ran, and the machine did not come back as it was."""

    id = "drill-failed"
    exit_code = 71
    default_hint = "Keep the folder named above: it holds consoles, screenshots and logs."


class ContentRemoved(RemetalError):
    """Content that a running capture counted on was removed before it could finish."""

    id = "content-removed"
    exit_code = 80
    default_hint = "Run the capture again; what was sent until now is kept and found."


class Interrupted(RemetalError):
    """Ctrl-C, or asked to stop."""

    id = "interrupted"
    exit_code = 130
    default_hint = "Nothing half-done counts; run the command again to continue."


OBJECT_FAULTS: Final = (RepositoryError, SecretError)
"""What may be wrong with an object itself. Everything else that reading one may raise, a link that
broke above all, says nothing about the object and is never taken for damage."""
