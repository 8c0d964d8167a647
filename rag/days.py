"""Which days does a text name? Dates as they are written in eleven languages, as far as they are written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

from rag.figure_forms import forms

_ERAS = {"令和": 2018, "平成": 1988, "昭和": 1925, "r": 2018, "h": 1988, "s": 1925}


@dataclass(frozen=True, slots=True)
class Day:
    """A date as far as it is written."""

    year: int | None
    month: int | None
    day: int | None = None


def cut_days(text: str) -> tuple[str, list[tuple[str, tuple[Day, ...]]]]:
    """Return a folded text with blanks for its dates, and each date as written with what it can mean.

    >>> cut_days("since 2.3.2024")
    ('since         ', [('2.3.2024', (Day(year=2024, month=3, day=2), Day(year=2024, month=2, day=3)))])
    """
    found: list[tuple[str, tuple[Day, ...]]] = []

    def take(match: re.Match[str]) -> str:
        days = tuple(dict.fromkeys(day for day in _readings(match) if _is_day(day)))
        if not days:
            return match.group()
        found.append((match.group(), days))
        return " " * len(match.group())

    for pattern in _patterns():
        text = pattern.sub(take, text)
    return text, found


def day_of(date: str) -> Day:
    """Return the day of an ISO 8601 date, as far as it is known."""
    parts = [int(part) for part in date[:10].split("-")]
    return Day(parts[0], parts[1] if len(parts) > 1 else None, parts[2] if len(parts) > 2 else None)


def days_of(first: int, second: int) -> list[Day]:
    """Return the days of no year that two numbers can mean: day and month, then month and day."""
    days = dict.fromkeys((Day(None, second, first), Day(None, first, second)))
    return [day for day in days if _is_day(day)]


def may_tell(asked: Sequence[Day], told: Sequence[Day], authored_at: str | None) -> bool:
    """Return whether a sentence may be about one of the days that are asked about, as far as dates tell.

    It may not where its note was written before, or where it gives the month of all that it says; unless it names one
    of those days.
    """
    if not asked or any(_agree(one, other) for one in asked for other in told):
        return True
    if authored_at is not None and all(_ends_before(day_of(authored_at), one) for one in asked):
        return False
    return not told or any(one.year is None or one.month is None for one in told)


def _agree(one: Day, other: Day) -> bool:
    pairs = ((one.year, other.year), (one.month, other.month), (one.day, other.day))
    return all(left is None or right is None or left == right for left, right in pairs)


def _ends_before(one: Day, other: Day) -> bool:
    last = (one.year or 0, one.month or 12, one.day or 31)
    return last < (other.year or 0, other.month or 1, other.day or 1)


def _readings(match: re.Match[str]) -> Iterator[Day]:
    parts = match.groupdict()
    years = _years(parts.get("y"), parts.get("era"))
    name = parts.get("name")
    months = sorted(forms().months[name]) if name else [_whole(parts.get("m"))]
    day = _whole(parts.get("d"))
    for year, month in product(years, months):
        yield Day(year, month, day)
        if parts.get("swaps") is not None and day is not None:
            yield Day(year, day, month)


def _years(written: str | None, era: str | None) -> list[int | None]:
    if written is None:
        return [None]
    if era is not None:
        return [_ERAS[era] + (1 if written == "元" else int(written))]
    return [int(written)] if len(written) > 2 else [2000 + int(written), 1900 + int(written)]


def _whole(written: str | None) -> int | None:
    return int(written) if written else None


def _is_day(day: Day) -> bool:
    return (day.month is None or 1 <= day.month <= 12) and (day.day is None or 1 <= day.day <= 31)


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    names = "|".join(sorted(map(re.escape, forms().months), key=len, reverse=True))
    day = r"(?P<d>0?[1-9]|[12]\d|3[01])"
    name = rf"(?P<name>{names})\b\.?"
    of, year = r"(?:\s+(?:de|of|di))?", r"(?P<y>(?:19|20)\d{2})(?!\d)"
    return tuple(
        map(
            re.compile,
            (
                r"(?<![^\W_])(?P<era>令和|平成|昭和|[rhs](?=\d{1,2}[./]\d{1,2}[./]))\s*(?P<y>\d{1,2}|元)[年./]\s*"
                r"(?:(?P<m>\d{1,2})[月./]\s*(?:(?P<d>\d{1,2})日?)?)?",
                r"(?<!\d)(?<!\d[.,])(?P<y>(?:19|20)\d{2})\s*(?:[-/.]|年)\s*(?P<m>\d{1,2})\s*(?:[-/.]|月)\s*(?P<d>\d{1,2})(?![\d])\s*[日号]?",
                r"(?<!\d)(?<!\d[.,])(?P<y>(?:19|20)\d{2})\s*年\s*(?P<m>\d{1,2})\s*月",
                r"(?<!\d)(?<!\d[.,])(?P<y>(?:19|20)\d{2})[-/.](?P<m>0[1-9]|1[0-2])(?![\d.,/-])",
                r"(?<![\d.,/-])(?P<d>\d{1,2})(?P<swaps>[./-])(?P<m>\d{1,2})[./-](?P<y>\d{4}|\d{2})(?![\d/-])",
                r"(?<![\d.,/-])(?P<m>0?[1-9]|1[0-2])[./](?P<y>(?:19|20)\d{2})(?![\d/-])",
                rf"(?<!\d)(?<!\d[.,]){day}(?:st|nd|rd|th|er|\.)?{of}[\s-]+{name}(?:,?(?:\s+(?:de|del))?[\s-]+{year})?",
                rf"\b{name}\s+{day}(?:st|nd|rd|th)?(?![\d.,/]\d|\d)(?:,?\s+{year})?",
                rf"\b{name},?(?:\s+(?:de|del|of))?\s+{year}",
                r"(?<!\d)(?<!\d[.,])(?P<m>\d{1,2})\s*月\s*(?P<d>\d{1,2})\s*[日号]",
                r"(?<!\d)(?<!\d[.,])(?P<m>\d{1,2})\s*月(?!\s*\d)",
            ),
        )
    )
