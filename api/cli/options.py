"""Options that several commands share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from indexer.errors import ScopeError
from indexer.records import Scalar, Scope

Command = TypeVar("Command", bound=Callable[..., object])


class Words(click.ParamType[str]):
    """A text that is not a path: bytes of the command line that are no UTF-8 are refused, they can match nothing."""

    name = "text"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail("is not UTF-8", param, ctx)
        return text


WORDS = Words()


class Named(Words):
    """A text that says whose or why: an empty one is a variable that was not set, and would reach something else."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        text = super().convert(value, param, ctx)
        if not text.strip():
            self.fail("is empty", param, ctx)
        return text


NAMED = Named()


class Place(click.Path):
    """A file or folder; an empty name is a variable that was not set, and would be the folder of the moment."""

    def __init__(self, *, exists: bool = False, file_okay: bool = True, dir_okay: bool = True) -> None:
        """Take what `click.Path` takes of these."""
        super().__init__(exists=exists, file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path."""
        if value == "":
            self.fail("is empty", param, ctx)
        return super().convert(value, param, ctx)  # type: ignore[arg-type,return-value]


class MetaPair(click.ParamType[tuple[str, Scalar]]):
    """``KEY=TEXT``, or ``KEY:=JSON`` for a number, true, false or null: 5 and "5" are two values."""

    name = "KEY=VALUE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Scalar]:
        """Return the two sides."""
        if isinstance(value, tuple):
            return value
        key, equals, given = WORDS.convert(value, param, ctx).partition("=")
        as_json = key.endswith(":")
        key = key.removesuffix(":")
        if not equals or not key:
            self.fail("is neither KEY=TEXT nor KEY:=NUMBER", param, ctx)
        if not as_json:
            return key, given
        try:
            found = json.loads(given)
        except ValueError:
            found = []
        if not isinstance(found, str | int | float | bool | None) or found in (math.inf, -math.inf) or found != found:
            self.fail("is not a JSON number, text, true, false or null", param, ctx)
        return key, found


class ColumnMap(click.ParamType[dict[str, str]]):
    """``text=note_text,patient_id=subject_id``."""

    name = "FIELD=COLUMN,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        """Return the columns by field."""
        if isinstance(value, dict):
            return value
        columns: dict[str, str] = {}
        for pair in str(value).split(","):
            field, equals, column = pair.partition("=")
            if not equals or not field.strip() or not column.strip():
                self.fail("is not of the form text=note_text,patient_id=subject_id", param, ctx)
            if field.strip() in columns:
                self.fail(f"names the field '{field.strip()}' twice", param, ctx)
            columns[field.strip()] = column.strip()
        return columns


def collection_option(command: Command) -> Command:
    """Add ``--collection``."""
    option = click.option("-c", "--collection", required=True, type=WORDS, metavar="NAME", help="The collection.")
    return option(command)


def json_option(command: Command) -> Command:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")(command)


_SCOPE = (
    click.option("--patient", type=WORDS, metavar="ID", help="Only notes of this patient."),
    click.option("--encounter", type=WORDS, metavar="ID", help="Only notes of this encounter."),
    click.option("--language", type=WORDS, multiple=True, metavar="xx", help="Only passages in it; repeatable."),
    click.option("--type", "note_type", type=WORDS, multiple=True, metavar="T", help="Only notes of it; repeatable."),
    click.option("--section", type=WORDS, multiple=True, metavar="S", help="Only passages of it; repeatable."),
    click.option("--source", type=WORDS, multiple=True, metavar="S", help="Only notes from it; repeatable."),
    click.option("--from", "date_from", type=WORDS, metavar="DATE", help="Only notes authored on or after this date."),
    click.option("--to", "date_to", type=WORDS, metavar="DATE", help="Only notes authored on or before this date."),
    click.option("--as-of", type=WORDS, metavar="TIME", help="The collection as it was known at this time."),
    click.option(
        "--meta",
        multiple=True,
        type=MetaPair(),
        help="Only notes with this metadata (KEY:=5 for a number); repeatable.",
    ),
)


def scope_options(command: Command) -> Command:
    """Add the options that `scope_of` reads."""
    for option in reversed(_SCOPE):
        command = option(command)
    return command


def scope_of(options: dict[str, object]) -> Scope:
    """Return the scope of the options of `scope_options`, taking them out of ``options``.

    Raises:
        ScopeError: an option is set to an empty text, or a key of metadata is given twice.
    """

    def text(name: str) -> str | None:
        value = options.pop(name)
        assert value is None or isinstance(value, str)
        return value

    def texts(name: str) -> tuple[str, ...]:
        value = options.pop(name)
        assert isinstance(value, tuple)
        return value

    meta = options.pop("meta")
    assert isinstance(meta, tuple)
    if len(dict(meta)) < len(meta):
        raise ScopeError("metadata", "names a key twice; a note has one value of it")
    return Scope(
        patient_id=text("patient"),
        encounter_id=text("encounter"),
        language=texts("language"),
        note_type=texts("note_type"),
        section=texts("section"),
        source=texts("source"),
        date_from=text("date_from"),
        date_to=text("date_to"),
        as_of=text("as_of"),
        metadata=dict(meta),
    )
