"""What reaches a terminal: text of notes, ids and file names are shown to it, never obeyed; numbers have their noun."""

from __future__ import annotations

import unicodedata

import click

_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They change the order in which characters stand: a dose of 15 mg can be made to look like one of 51."""


def printable(text: str) -> str:
    r"""Return the text with its control characters made visible: a note must not drive the reader's terminal.

    >>> printable("a\x1b[31mb\tc")
    'a␛[31mb\tc'
    """
    return "".join(
        chr(0x2400 + ord(char))
        if ord(char) < 0x20 and char not in "\n\t"
        else "�"
        if (unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t") or char in _TURNING
        else char
        for char in text
    )


def say(text: str, *, err: bool = False) -> None:
    """Print a line for people that holds what the caller did not write."""
    click.echo(printable(text), err=err)


def counted(n: int, noun: str, *, plural: str | None = None) -> str:
    """Return a number with its noun, in the singular where there is one.

    >>> counted(1, "note"), counted(1_200, "passage"), counted(0, "vector")
    ('1 note', '1,200 passages', '0 vectors')
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
