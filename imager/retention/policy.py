"""What is kept: numbers of images, of periods, and a span of time."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from imager.errors import UsageError
from imager.units import DAY


class Period(StrEnum):
    """A calendar period in UTC."""

    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    YEARLY = "yearly"

    def name_of(self, seconds: float) -> str:
        """Return the period a moment lies in: `2026-03` for a month, `2026-W14` for an ISO week.

        Args:
            seconds: since the epoch; what lies before it counts as the epoch.
        """
        return datetime.fromtimestamp(max(seconds, 0), UTC).strftime(_FORMATS[self])


_FORMATS: Final[Mapping[Period, str]] = {
    Period.HOURLY: "%Y-%m-%d %H:00",
    Period.DAILY: "%Y-%m-%d",
    Period.WEEKLY: "%G-W%V",
    Period.MONTHLY: "%Y-%m",
    Period.YEARLY: "%Y",
}


@dataclass(frozen=True, slots=True)
class Policy:
    """How much is kept of each machine and credential; an image stays if one rule wants it.

    A rule of zero is off. The period rules begin where `within` ends: a period whose newest image
    is kept by `within` takes no place, so that "90 days and 12 monthly" means everything of 90
    days and then 12 months. Periods without images take no place either.

    Attributes:
        last: the newest images.
        hourly: hours of which the newest image is kept.
        daily: likewise days.
        weekly: likewise ISO weeks.
        monthly: likewise months.
        yearly: likewise years.
        within: seconds; every image that is not older.

    Raises:
        UsageError: a number is negative, or nothing at all would be kept.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: int = 0

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if value < 0:
                raise UsageError(f"--keep-{name} can't be negative")
        if not any(values.values()):
            raise UsageError(
                "this policy keeps nothing",
                hint="Give at least one of the --keep options a value above zero, or leave all of "
                "them out: then everything of 90 days and 12 monthly images are kept.",
            )

    def count(self, period: Period) -> int:
        """Return of how many periods of a kind an image is kept."""
        value: int = getattr(self, period.value)
        return value


DEFAULT: Final = Policy(monthly=12, within=90 * DAY)
