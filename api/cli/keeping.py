"""`clinrag collections backup`, `restore` and `repair`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from api.cli.context import CliContext, pass_context
from api.cli.options import Place, json_option
from api.cli.terminal import counted, say

_PATH = Place(dir_okay=False)


@click.command()
@click.argument("name")
@click.argument("file", type=_PATH)
@click.option("--since", metavar="FILE", type=_PATH, help="An earlier backup: write what changed since alone.")
@json_option
@pass_context
def backup(context: CliContext, name: str, file: Path, since: Path | None, as_json: bool) -> None:
    """Write a collection into one new file while it is used: consistent, checked, readable by its owner alone.

    What is written with --since is restored with the earlier backup beside it.
    """
    from indexer.backup import backup as write_backup

    if not file.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {file.parent}; make it first", param_hint="FILE")
    context.if_interrupted = "no backup was made"
    facts = write_backup(context.service.collection(name), file, since)
    if as_json:
        click.echo(json.dumps({"file": str(file), **asdict(facts)}))
    else:
        of = name if since is None else f"{name} since {since}"
        click.echo(f"{file}: {counted(facts.notes, 'note')} of {of}, {facts.bytes / 1e6:,.1f} MB, checked")


@click.command()
@click.argument("file", type=_PATH)
@click.argument("name")
@json_option
@pass_context
def restore(context: CliContext, file: Path, name: str, as_json: bool) -> None:
    """Make a new collection of a backup; what was erased since the backup was made is erased from it again."""
    from indexer.backup import restore as read_backup

    context.if_interrupted = "nothing was restored"
    restored = read_backup(context.service.library, file, name)
    with restored.collection as collection:
        notes = collection.info().notes
    erased = sum(one.receipt.counts["notes"] for one in restored.erased)
    if as_json:
        said = {"collection": name, "notes": notes, "erased_again": erased, "backup_made": restored.facts.created_at}
        click.echo(json.dumps({**said, "unreadable": restored.unreadable}, ensure_ascii=False))
        return
    click.echo(f"restored {counted(notes, 'note')} to {name}, as of {restored.facts.created_at}")
    if erased:
        click.echo(f"  {counted(erased, 'note')} erased since then {'is' if erased == 1 else 'are'} erased again")
    if restored.unreadable:
        were = "was" if restored.unreadable == 1 else "were"
        why = "destroyed with an erasure, or the file of keys is an older copy"
        click.echo(f"  {counted(restored.unreadable, 'note')} {were} left out: the key is not there ({why})")


@click.command()
@click.argument("name")
@json_option
@pass_context
def repair(context: CliContext, name: str, as_json: bool) -> None:
    """Make a damaged collection sound: lost vectors are embedded again, what is lost for good is put aside by name."""
    from indexer.repair import repair as mend

    context.if_interrupted = "nothing was changed"
    done = mend(context.service.library, name, context.service.encoder)
    kept = None if done.damaged_file is None else str(done.damaged_file)
    if as_json:
        rows = [{"row": one.row, "note_id": one.note_id, "reason": one.reason} for one in done.quarantined]
        said = {"collection": name, "embedded": done.embedded, "cut_again": done.cut_again, "quarantined": rows}
        click.echo(json.dumps({**said, "damaged_file": kept}, ensure_ascii=False))
        return
    if kept is None:
        click.echo(f"{name}: sound, nothing to repair")
        return
    embedded, cut = counted(done.embedded, "vector"), counted(done.cut_again, "note version")
    click.echo(f"{name}: {embedded} embedded again, {cut} cut again")
    for one in done.quarantined:
        whose = "" if one.note_id is None else f" (note {one.note_id})"
        say(f"  put aside: {one.row}{whose}: {one.reason}")
    click.echo(f"  the database as it was: {kept}")
