"""`clinrag collections scan`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from api.cli.context import CliContext, pass_context
from api.cli.options import Place, json_option
from api.cli.terminal import counted

_FILE = Place(exists=True, dir_okay=False)
_MAX_BYTES = 64 * 1024 * 1024


@click.command()
@click.argument("name")
@click.option("--for", "texts", type=_FILE, multiple=True, help="A text to look for: any 24 bytes of it; repeatable.")
@click.option("--ids", "id_file", type=_FILE, help="Note ids to look for, one a line.")
@json_option
@pass_context
def scan(context: CliContext, name: str, texts: tuple[Path, ...], id_file: Path | None, as_json: bool) -> None:
    """Look through every byte of a collection's files for traces that no kept note explains; exit 1 when found."""
    from indexer.errors import TooLargeError
    from indexer.scan import SHORTEST_ID, WINDOW

    if not texts and id_file is None:
        raise click.UsageError("say what to look for: --for FILE, --ids FILE or both")
    if sum(path.stat().st_size for path in texts) > _MAX_BYTES:
        raise TooLargeError(f"the texts to look for are over {_MAX_BYTES >> 20} MiB together; scan for them in parts")
    wanted = [path.read_bytes() for path in texts]
    for path, text in zip(texts, wanted, strict=True):
        if len(text.strip()) < WINDOW:  # "no trace" of what nothing was looked for of would be taken for an answer
            raise click.BadParameter(
                f"{path} holds fewer than {WINDOW} bytes, of which nothing can be told; "
                "give more of the text, or look for a short value as an id with --ids",
                param_hint="--for",
            )
    ids = [] if id_file is None else _ids(id_file)
    found = context.service.collection(name).scan(wanted, ids)
    short = sum(len(one.encode()) < SHORTEST_ID for one in ids)
    if as_json:
        rows = [{"where": row.where, "kind": row.kind, "places": row.places, "first": row.first_byte} for row in found]
        click.echo(json.dumps({"collection": name, "traces": rows, "short_ids": short}, ensure_ascii=False))
    else:
        for row in found:
            click.echo(
                f"{row.where}: {row.kind} in {counted(row.places, 'place')}, the first at byte {row.first_byte:,}"
            )
        if short:
            click.echo(
                f"{counted(short, 'id')} under {SHORTEST_ID} bytes: looked for as whole values, not in every byte"
            )
        click.echo(f"{name}: {'traces in ' + counted(len(found), 'file') if found else 'no trace'}")
    if found:
        raise click.exceptions.Exit(1)


def _ids(path: Path) -> list[str]:
    """Return the ids of a file. Lines end at line feeds alone: an id can hold what other programs take for an end."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise click.BadParameter(f"{path} is not UTF-8", param_hint="--ids") from None
    ids = [one for line in lines if (one := line.removesuffix("\r"))]
    if not ids:
        raise click.BadParameter(f"{path} holds no id", param_hint="--ids")
    return ids
