"""`clinrag index`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from api.cli.context import CliContext, pass_context
from api.cli.options import NAMED, ColumnMap, Place, collection_option, json_option
from api.cli.terminal import counted, say
from indexer.errors import SourceError
from indexer.records import Note, RowError

if TYPE_CHECKING:
    from indexer.readers import WithoutNotes

_SHOWN = 5
_PUBLISH_SHARE = 0.02


@click.command()
@click.argument("paths", nargs=-1, required=True, type=Place())
@collection_option
@click.option(
    "--encoder",
    type=NAMED,
    metavar="NAME",
    help="Of a new collection: hashing, compact, multiclinicalbert, a folder or a hub id [CLINRAG_ENCODER].",
)
@click.option("--map", "column_map", type=ColumnMap(), help="Columns of tables, keys of JSON: text=note_text,...")
@click.option("--format", "input_format", metavar="NAME", help="What the inputs are, where it cannot be seen.")
@click.option("--skipped", type=Place(dir_okay=False), help="Write skipped records here (JSON lines).")
@click.option("--strict", is_flag=True, help="Exit 1 when a record was skipped for a fault.")
@json_option
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
@pass_context
def index(  # noqa: PLR0913 (a command has as many parameters as it has options)
    context: CliContext,
    paths: tuple[Path, ...],
    collection: str,
    encoder: str | None,
    column_map: dict[str, str] | None,
    input_format: str | None,
    skipped: Path | None,
    strict: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Store notes from files and folders; a new collection is made, what is stored already is skipped.

    JSON, CSV, TSV, Parquet, plain text, HTML, RTF, PDF, FHIR R4, C-CDA, HL7 v2, MIMIC, OMOP and BRAT are told apart by
    content.
    """
    from api.cli.progress import IndexProgress, busy
    from indexer.readers import WithoutNotes, read_sources

    context.if_interrupted = "nothing lost; run the same command again to go on"
    started = time.perf_counter()
    without = context.service.library.databases
    if skipped is not None:
        if _among(paths, skipped):
            raise click.BadParameter(
                f"{skipped} lies among the inputs, and would be written over; choose another place",
                param_hint="--skipped",
            )
        try:  # a report that cannot be written is better known before the work than after it
            write_skipped(skipped, [])
        except OSError as error:
            raise click.BadParameter(
                f"{skipped} cannot be written: {error.strerror}; check the path and its permissions",
                param_hint="--skipped",
            ) from None
    none_in = WithoutNotes()
    read = read_sources(paths, column_map=column_map, input_format=input_format, without=without, without_notes=none_in)
    items = _readable(read, skipped)
    target = context.service.open_or_create(collection, encoder)
    with IndexProgress(paths, column_map, input_format, without, quiet=quiet or as_json) as progress:
        report = context.service.index(target, items, progress.update)
    # This process ends, and each of the next commands would make up anew for what is not in the derived files.
    target.publish_soon(beyond=_PUBLISH_SHARE)
    seconds = time.perf_counter() - started
    if skipped is not None:
        write_skipped(skipped, report.rejected)
    if as_json:
        counts = {
            "collection": collection,
            "encoder": target.encoder_name,
            "stored": report.stored,
            "skipped": report.skipped,
            "rejected": len(report.rejected),
            "chunks": report.chunks,
            "took_s": round(seconds, 3),
            "skip_report": None if skipped is None else str(skipped),
        }
        click.echo(json.dumps(counts, ensure_ascii=False))
    elif not quiet:
        click.echo(
            f"{collection}: stored {counted(report.stored, 'note')} ({counted(report.chunks, 'passage')}, "
            f"{target.encoder_name}), "
            f"skipped {report.skipped:,} unchanged, rejected {len(report.rejected):,}, in {seconds:.1f} s"
        )
        _show_rejected(report.rejected, skipped)
        _show_without_notes(none_in, nothing=not report.stored + report.skipped + len(report.rejected))
    context.if_interrupted = "all is stored; the next import writes the files that make searching quick"
    with busy("writing the files that make searching quick"):
        context.close()
    if strict and report.rejected:
        raise click.exceptions.Exit(1)


def _among(paths: Iterable[Path], report: Path) -> bool:
    """Say whether a report would be one of the inputs, or be read as one of a folder's files."""
    place = report.resolve()
    return any(place == path.resolve() or (path.is_dir() and place.is_relative_to(path.resolve())) for path in paths)


def _readable(items: Iterator[Note | RowError], skipped: Path | None) -> Iterator[Note | RowError]:
    """Return the items again, read up to the first that is more than a file that was refused as a whole.

    Raises:
        SourceError: there is none, so nothing that was named is what it says; the skip report is written.
    """
    refused: list[RowError] = []
    for item in items:
        if not isinstance(item, RowError) or item.line is not None or item.field is not None:
            return chain(refused, [item], items)
        refused.append(item)
    if not refused:
        return iter(())
    if skipped is not None:
        write_skipped(skipped, refused)
    more = f" (and {len(refused) - 1:,} more)" if len(refused) > 1 else ""
    raise SourceError(
        f"nothing that was named can be read: {refused[0].file} {refused[0].reason}{more}; "
        "mend the files, or say with --format what they are"
    )


def write_skipped(path: Path, rejected: Iterable[RowError]) -> None:
    """Write the skip report: a JSON object a line, readable by its owner alone; no text of a note is in it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        for row in rejected:
            record = {"file": row.file, "line": row.line, "field": row.field, "reason": row.reason}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _show_without_notes(found: WithoutNotes, *, nothing: bool) -> None:
    """Say which files hold no note, and, where there was ``nothing`` at all, why."""
    if found.n_files:
        kinds = ", ".join(f"{kind} {n:,}" for kind, n in found.resources.most_common(_SHOWN))
        kinds += ", ..." if len(found.resources) > _SHOWN else ""
        more = f" and {found.n_files - len(found.files):,} more" if found.n_files > len(found.files) else ""
        say(f"  no notes in {', '.join(found.files)}{more}: FHIR resources of other types ({kinds})", err=True)
    elif nothing and not found.n_read:
        click.echo("  no file was found there (hidden ones are passed over)", err=True)
    elif nothing:
        click.echo("  no notes were found there; --format says what the files are", err=True)


def _show_rejected(rejected: list[RowError], skipped: Path | None) -> None:
    for row in rejected[:_SHOWN]:
        line = "" if row.line is None else f":{row.line}"
        field = "" if row.field is None else f"{row.field} "
        say(f"  rejected {row.file}{line}: {field}{row.reason}", err=True)
    if len(rejected) > _SHOWN:
        rest = f"  ... and {len(rejected) - _SHOWN:,} more"
        click.echo(rest + (f" in {skipped}" if skipped else "; --skipped FILE writes all of them"), err=True)
