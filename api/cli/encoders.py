"""`clinrag embed` and `clinrag encoders`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from api.cli.context import CliContext, pass_context
from api.cli.options import NAMED, Place, json_option
from api.cli.terminal import counted


@click.command()
@click.option(
    "--encoder", type=NAMED, metavar="NAME", help="hashing, compact, multiclinicalbert, a folder or a hub id."
)
@click.option("--input", "source", required=True, type=Place(), help="One text a line, UTF-8.")
@click.option("--output", "target", required=True, type=Place(), help="(n, dim) float32, .npy.")
@click.option("--queries", is_flag=True, help="Embed as queries; absent: as passages.")
@click.option("--truncate", is_flag=True, help="Cut lines that are too long for the encoder instead of refusing them.")
@json_option
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
@pass_context
def embed(
    context: CliContext,
    encoder: str | None,
    source: Path,
    target: Path,
    queries: bool,
    truncate: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a vector for every line of a file: L2-normalised, a blank line is a row of zeros."""
    from api.cli.progress import ProgressLine
    from api.embedding import embed_lines

    context.if_interrupted = "the finished rows are kept; run the same command again to go on"
    name = encoder or context.service.default_encoder()
    loaded = context.service.encoder(name)
    with ProgressLine("embedding", "lines", quiet=quiet or as_json) as progress:

        def show(done: int, total: int) -> None:
            progress.total = total
            progress.show(done)

        made = embed_lines(loaded, source, target, queries=queries, truncate=truncate, on_progress=show)
    if as_json:
        click.echo(json.dumps({"encoder": name, "output": str(target), **asdict(made)}, ensure_ascii=False))
    elif not quiet:
        cut = f", {made.truncated:,} cut" if made.truncated else ""
        blank = f"{counted(made.blank, 'blank line')} {'is' if made.blank == 1 else 'are'} zero"
        click.echo(f"{target}: {made.rows:,} x {made.dim} float32 with {name}{cut}, {blank}")


@click.group()
def encoders() -> None:
    """List, describe and fetch encoders."""


@encoders.command(name="list")
@json_option
@pass_context
def list_(context: CliContext, as_json: bool) -> None:
    """List the encoders that have a name; any model folder or hub id works as well."""
    from indexer.encoders.catalog import CATALOG, is_here

    default = context.service.default_encoder()
    rows = [{**asdict(entry), "here": is_here(entry), "default": entry.name == default} for entry in CATALOG.values()]
    if as_json:
        click.echo(json.dumps({"encoders": rows}, ensure_ascii=False))
        return
    width = max(len(entry.name) for entry in CATALOG.values())
    click.echo(f"{'NAME':<{width}}  {'M':>4}  {'TOKENS':>6}  {'HERE':<4}  {'LICENCE':<12}  LANGUAGES, ABOUT")
    for entry, row in zip(CATALOG.values(), rows, strict=True):
        size = "" if entry.parameters_m is None else str(entry.parameters_m)
        about = f"{entry.languages}; {entry.about}" + (" (default)" if row["default"] else "")
        here = "yes" if row["here"] else "no"
        click.echo(f"{entry.name:<{width}}  {size:>4}  {entry.max_length:>6}  {here:<4}  {entry.licence:<12}  {about}")


@encoders.command()
@click.argument("name", type=NAMED)
@json_option
@pass_context
def info(context: CliContext, name: str, as_json: bool) -> None:
    """Load an encoder and say what makes its vectors comparable."""
    loaded = context.service.encoder(name)
    described = {
        "name": name,
        "fingerprint": loaded.spec.fingerprint,
        **asdict(loaded.spec),
        "max_tokens": loaded.max_tokens,
    }
    if as_json:
        click.echo(json.dumps(described, ensure_ascii=False))
        return
    for key, value in described.items():
        click.echo(f"{key + ':':<16}{value!r}" if value == "" else f"{key + ':':<16}{value}")


@encoders.command()
@click.argument("name", type=NAMED)
def fetch(name: str) -> None:
    """Download an encoder from the hub: the one command that goes out."""
    from indexer.encoders.catalog import fetch as fetch_encoder

    click.echo(f"{name} is in {fetch_encoder(name)}")
