"""Envelopes: how a session key reaches the recipients (FORMAT.md section 4)."""

from collections.abc import Sequence
from typing import Final

from imager.errors import ObjectDamaged, RecoveryKeyNeeded
from imager.repository.crypto.derive import KEY_SIZE, context
from imager.repository.crypto.recipient import ID_SIZE, OVERHEAD, Recipient, RecipientKey

ENTRY_SIZE: Final = ID_SIZE + OVERHEAD + KEY_SIZE
_LABEL: Final = "session"


def seal(
    recipients: Sequence[Recipient], repository: bytes, session: bytes, session_key: bytes
) -> bytes:
    """Return the envelope of a session key (32 bytes) for all recipients."""
    info = context(_LABEL) + repository + session
    sealed = [recipient.id + recipient.seal(info, session_key) for recipient in recipients]
    return bytes([len(sealed)]) + b"".join(sealed)


def open_envelope(
    key: RecipientKey, envelope: bytes, repository: bytes, session: bytes, what: str
) -> bytes:
    """Return the session key.

    Raises:
        ObjectDamaged: the envelope was changed.
        RecoveryKeyNeeded: this key is none of its recipients.
    """
    if not envelope or len(envelope) != 1 + envelope[0] * ENTRY_SIZE:
        raise ObjectDamaged(f"the envelope of {what} is malformed")
    wanted = key.recipient.id
    for start in range(1, len(envelope), ENTRY_SIZE):
        entry = envelope[start : start + ENTRY_SIZE]
        if entry[:ID_SIZE] == wanted:
            info = context(_LABEL) + repository + session
            return key.open(info, entry[ID_SIZE:], f"the envelope of {what}")
    raise RecoveryKeyNeeded(
        f"this recovery key is not among those {what} was sealed to",
        hint="Use one of the recovery keys that were recipients when the image was captured.",
    )
