"""Numbers with their noun."""

from __future__ import annotations


def counted(n: int, noun: str, *, plural: str | None = None) -> str:
    """Return a number with its noun, in the singular where there is one.

    >>> counted(1, "note"), counted(1_200, "passage"), counted(0, "vector")
    ('1 note', '1,200 passages', '0 vectors')
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
