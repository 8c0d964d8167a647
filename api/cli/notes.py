"""`clinrag notes`."""

from __future__ import annotations

import json
import sys

import click

from api.cli import erasing
from api.cli.context import CliContext, pass_context
from api.cli.options import WORDS, collection_option, json_option
from api.cli.terminal import counted, printable, say


@click.group()
def notes() -> None:
    """Show, delete and erase notes."""


@notes.command()
@click.argument("note_id", metavar="ID", type=WORDS)
@collection_option
@click.option("--version", type=click.IntRange(1), help="An older version; absent: the current one.")
@json_option
@pass_context
def show(context: CliContext, note_id: str, collection: str, version: int | None, as_json: bool) -> None:
    """Show a note with its text exactly as it was received."""
    from api.schemas import NoteModel
    from api.shown import shown_note

    note = NoteModel.model_validate(shown_note(context.service.collection(collection), note_id, version))
    if as_json:
        click.echo(note.json_text())
        return
    for name, value in note.model_dump(exclude={"text"}).items():
        if value not in (None, [], {}):
            shown = json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else str(value)
            click.echo(f"{name + ':':<14}{printable(shown)}")
    click.echo()
    # A terminal obeys control characters, a file does not: only there are they shown instead of sent. A line end of
    # Windows is one to it, too; a carriage return alone would write over the line.
    click.echo(printable(note.text.replace("\r\n", "\n")) if sys.stdout.isatty() else note.text)


@notes.command()
@click.argument("note_ids", metavar="ID...", nargs=-1, required=True, type=WORDS)
@collection_option
@json_option
@pass_context
def delete(context: CliContext, note_ids: tuple[str, ...], collection: str, as_json: bool) -> None:
    """Delete notes: no search, answer or listing shows any of their versions from then on."""
    result = context.service.collection(collection).delete_notes(note_ids)
    if as_json:
        click.echo(json.dumps({"deleted": list(result.deleted), "missing": list(result.missing)}, ensure_ascii=False))
    else:
        click.echo(f"deleted {counted(len(result.deleted), 'note')}")
        for note_id in result.missing:
            say(f"  no such note: {note_id}", err=True)
    if result.missing:
        raise click.exceptions.Exit(2)


for command in (erasing.erase, erasing.hold, erasing.release, erasing.holds):
    notes.add_command(command)
