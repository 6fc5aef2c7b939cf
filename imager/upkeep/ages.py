"""Images as retention takes them: whose they are, how old, and why they must stay."""

from collections.abc import Iterable

from imager.repository.image import SealedImage
from imager.repository.standing import Standing, seconds_of
from imager.retention.retention import StoredImage


def stored_images(
    images: Iterable[SealedImage], standing: Standing, now: float
) -> list[StoredImage]:
    """Return images as retention takes them.

    Args:
        images: of the repository.
        standing: what was said about them.
        now: by the store's clock.
    """
    reasons = standing.reasons(now)
    return [
        StoredImage(
            image.id,
            image.summary.machine_id,
            image.summary.machine_name,
            f"{image.certificate.name} ({image.certificate.id.hex()[:8]})",
            image.modified,
            seconds_of(image.summary.finished),
            image.summary.stored_bytes,
            reasons.get(image.id, ()),
            image.id in standing.drilled,
        )
        for image in images
    ]
