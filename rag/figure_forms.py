"""What is written for figures without being plain numbers, read from ``figures.toml``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files
from tomllib import loads

from indexer.text.lexemes import word_lists
from indexer.text.spelling import normalized

TIMES, WORD = "times", "word"
"""Units of their own: how often, and a number in words."""


@dataclass(frozen=True, slots=True)
class Forms:
    """The data file, ready to be asked. All forms are folded as `rag.figures` folds texts."""

    units: dict[str, str]
    powers: dict[str, int]
    months: dict[str, frozenset[int]]
    numbers: dict[str, Decimal]
    often: tuple[tuple[str, Decimal], ...]
    once: tuple[str, ...]
    once_parts: tuple[str, ...]
    around: frozenset[str]
    around_parts: tuple[str, ...]
    denies: dict[str, re.Pattern[str]]
    denied: tuple[str, ...]
    denied_words: frozenset[str]
    denied_parts: tuple[str, ...]


@cache
def forms() -> Forms:
    """Return the forms of all languages."""
    data = loads((files("rag") / "figures.toml").read_text(encoding="utf-8"))
    units = {
        normalized(form): common
        for common, written in word_lists("analysis_units.toml")["units"].items()
        for form in written.split()
        if form not in ("m", "м")  # "72 M" is a man.
    }
    for common, written in (*data["time"].items(), (TIMES, data["times"]["words"])):
        units |= {normalized(form): common for form in written.split()}
    months: dict[str, set[int]] = {}
    for twelve in data["months"].values():
        for number, written in enumerate(twelve.split(), start=1):
            for form in written.split("/"):
                months.setdefault(form, set()).add(number)
    negations = word_lists("negations.toml")
    return Forms(
        units=units,
        powers={form: int(value) for value, written in data["powers"].items() for form in written.split()},
        months={form: frozenset(numbers) for form, numbers in months.items()},
        numbers={form: Decimal(value) for value, written in data["numbers"].items() for form in written.split()},
        often=tuple(
            (form.replace("_", " "), Decimal(value))
            for value, written in data["often"].items()
            for form in written.split()
        ),
        once=tuple(form.replace("_", " ") for form in data["once"]["words"].split()),
        once_parts=tuple(data["once"]["parts"].split()),
        around=frozenset(data["around"]["words"].split()),
        around_parts=tuple(data["around"]["parts"].split()),
        denies={language: re.compile(pattern) for language, pattern in data["denies"].items()},
        denied=tuple(data["denied"]["words"].split()),
        denied_words=frozenset(" ".join(negations["words"].values()).split()),
        denied_parts=tuple(f"{data['denied']['parts']} {' '.join(negations['parts'].values())}".split()),
    )
