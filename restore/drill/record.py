"""Writing into a repository how the drill of one of its images went, so that prune keeps it."""

from imager.repository.header import StatementKind
from imager.repository.keyring import LockedRecoveryKey
from imager.repository.repository import Repository, now
from imager.repository.retrieval import Unlocked
from imager.repository.statement import DrillBody, Signatory
from restore.drill.report import Outcome, Result
from restore.drill.run import Subject


def record(subject: Subject, result: Result) -> bool:
    """Store a signed statement about a drill of a user's image.

    Returns:
        Whether it was stored; a recovery key that was removed from the repository opens images
        and can't say anything about them.

    Raises:
        OutputError: the repository does not take it.
    """
    repository = Repository.open(subject.repository)
    key = LockedRecoveryKey.read(subject.recovery_key).unlock(subject.secret)
    unlocked = Unlocked(repository, key)
    if not unlocked.is_current:
        return False
    passed = result.outcome is not Outcome.FAILED
    body = DrillBody(subject.image, passed, result.rto or 0.0, now())
    signatory = Signatory(unlocked.secrets.signer)
    repository.state(StatementKind.DRILL, body, signatory, unlocked.keys.group)
    return True
