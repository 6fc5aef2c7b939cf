"""Envelopes: how a session key reaches the holders of opening keys (FORMAT.md section 4)."""

from collections.abc import Mapping, Sequence
from typing import Final

from imager.errors import ObjectDamaged, RecoveryKeyNeeded
from imager.repository.crypto.derive import KEY_SIZE, context
from imager.repository.crypto.recipient import ID_SIZE, OVERHEAD, Recipient, RecipientKey

ENTRY_SIZE: Final = ID_SIZE + OVERHEAD + KEY_SIZE
_LABEL: Final = "session"


def seal(
    recipients: Sequence[Recipient], repository: bytes, session: bytes, session_key: bytes
) -> bytes:
    """Return the envelope of a session key (32 bytes) for opening keys."""
    info = context(_LABEL) + repository + session
    sealed = [recipient.id + recipient.seal(info, session_key) for recipient in recipients]
    return bytes([len(sealed)]) + b"".join(sealed)


def open_envelope(
    keys: Mapping[bytes, RecipientKey],
    envelope: bytes,
    repository: bytes,
    session: bytes,
    what: str,
) -> bytes:
    """Return the session key.

    Args:
        keys: opening keys, by the id of their public half.
        envelope: its bytes.
        repository: id.
        session: id of the capture.
        what: the name of the object it lies in, for errors.

    Raises:
        ObjectDamaged: the envelope was changed.
        RecoveryKeyNeeded: none of the keys opens it.
    """
    if not envelope or len(envelope) != 1 + envelope[0] * ENTRY_SIZE:
        raise ObjectDamaged(f"the envelope of {what} is malformed")
    for start in range(1, len(envelope), ENTRY_SIZE):
        entry = envelope[start : start + ENTRY_SIZE]
        key = keys.get(entry[:ID_SIZE])
        if key is not None:
            info = context(_LABEL) + repository + session
            return key.open(info, entry[ID_SIZE:], f"the envelope of {what}")
    raise RecoveryKeyNeeded(
        f"this recovery key does not open {what}",
        hint="It was taken after the key had been removed from the repository: use another one. "
        "Or a generation can't be read: `remetal key list REPO` names it, and "
        "`remetal repair REPO` may bring it back.",
    )
