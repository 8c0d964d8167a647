"""Clinical and system time: ISO 8601 texts of any precision to half-open periods of UTC microseconds."""

from __future__ import annotations

import calendar
import re
from datetime import UTC, datetime, timedelta

_PARTIAL = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?\Z")
_MOMENT = re.compile(
    r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(?:[.,]\d{1,9})?)?(Z|[+-]\d{2}(?::?\d{2})?)?\Z", re.IGNORECASE
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def period(text: str) -> tuple[int, int]:
    """Return the half-open period ``[start, end)`` that a date or moment covers, in microseconds since 1970, UTC.

    A year covers its year, a month its month, a day its day; a moment without seconds covers its minute, with seconds
    its second, with a fraction one microsecond. Without an offset it is UTC.

    >>> period("1970-01-02") == (86_400_000_000, 172_800_000_000)
    True

    Raises:
        ValueError: the text is none of these forms, or no such day exists. The message does not repeat the text.
    """
    partial = _PARTIAL.match(text.strip())
    if partial:
        year, month, day = (int(part) if part else None for part in partial.groups())
        assert year is not None
        try:
            start = datetime(year, month or 1, day or 1, tzinfo=UTC)
            days = 1 if day else calendar.monthrange(year, month)[1] if month else 366 if calendar.isleap(year) else 365
            return _microseconds(start), _microseconds(start) + days * 86_400_000_000
        except ValueError:
            raise ValueError("is not a day of the calendar") from None
    match = _MOMENT.match(text.strip())
    if not match:
        raise ValueError("is not an ISO 8601 date or time (YYYY, YYYY-MM, YYYY-MM-DD or YYYY-MM-DDThh:mm[:ss][offset])")
    try:
        moment = datetime.fromisoformat(text.strip().replace(",", ".").upper())
    except ValueError:
        raise ValueError("is not a time of the calendar") from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    start_us = _microseconds(moment)
    seconds = match.group(1)
    return start_us, start_us + (60_000_000 if seconds is None else 1 if len(seconds) > 3 else 1_000_000)


def instant(text: str) -> int:
    """Return the last microsecond of the period that a date or moment covers: "as of 2024-03" is the end of March.

    Raises:
        ValueError: as for `period`.
    """
    return period(text)[1] - 1


def now_us() -> int:
    """Return the present, in microseconds since 1970, UTC."""
    return _microseconds(datetime.now(UTC))


def iso(moment_us: int) -> str:
    """Return a UTC timestamp such as ``2024-03-02T10:00:00.000000Z``.

    >>> iso(0)
    '1970-01-01T00:00:00.000000Z'
    """
    # Not by strftime, which takes twice as long: a search writes a few dozen.
    return (_EPOCH + timedelta(microseconds=moment_us)).isoformat(timespec="microseconds")[:26] + "Z"


def day(moment_us: int) -> str:
    """Return the UTC day of a moment, ``YYYY-MM-DD``.

    >>> day(86_400_000_000)
    '1970-01-02'
    """
    return iso(moment_us)[:10]


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
