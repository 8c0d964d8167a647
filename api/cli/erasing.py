"""`clinrag notes erase`, `hold`, `release` and `holds`, and `clinrag receipts`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from api.cli.context import CliContext, pass_context
from api.cli.options import NAMED, Place, collection_option, json_option
from api.cli.terminal import counted, say

_AGAIN = "what was asked for is finished when the collection is opened next"


@click.command()
@click.argument("note_ids", metavar="[ID...]", nargs=-1, type=NAMED)
@click.option("--patient", metavar="ID", type=NAMED, help="All notes of this patient.")
@collection_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_context
def erase(
    context: CliContext, note_ids: tuple[str, ...], patient: str | None, collection: str, yes: bool, as_json: bool
) -> None:
    """Erase notes so that no file of the collection holds anything of them; prints the signed receipt."""
    from api.erasures import ErasureResult, ReceiptModel

    if bool(note_ids) == (patient is not None):
        raise click.UsageError("name notes by ID, or one patient with --patient ID")
    context.service.collection(collection)
    if not yes:
        what = counted(len(note_ids), "note") if patient is None else "all notes of that patient"
        click.confirm(f"erase {what} from {collection}? This cannot be undone", abort=True)
    context.if_interrupted = _AGAIN
    by, subjects = ("notes", note_ids) if patient is None else ("patient", (patient,))
    erased = context.service.erase(collection, by, subjects)  # type: ignore[arg-type]
    receipt = erased.receipt
    if as_json:
        fields = ReceiptModel.model_validate(receipt).model_dump()
        click.echo(ErasureResult(**fields, missing=list(erased.missing)).json_text())
    else:
        counts = receipt.counts
        parts = f"{counted(counts['versions'], 'version')}, {counted(counts['chunks'], 'passage')}"
        click.echo(f"erased {counted(counts['notes'], 'note')} ({parts})")
        if counts["withdrawn"]:
            were = "was" if counts["withdrawn"] == 1 else "were"
            click.echo(f"  {counts['withdrawn']:,} waited in indexing jobs and {were} taken out")
        click.echo(f"  receipt {context.service.library.receipts.path(receipt.receipt_id)}")
    for note_id in erased.missing:
        say(f"  no such note: {note_id}", err=True)
    if erased.missing:
        raise click.exceptions.Exit(2)


@click.command()
@click.option("--patient", required=True, metavar="ID", type=NAMED, help="Whose notes.")
@click.option("--reason", required=True, metavar="TEXT", type=NAMED, help="Why; an erasure is refused with it.")
@collection_option
@pass_context
def hold(context: CliContext, patient: str, reason: str, collection: str) -> None:
    """Refuse to erase or delete a patient's notes from now on (legal hold)."""
    context.service.collection(collection).hold(patient, reason)
    say(f"{collection}: the notes of patient {patient} cannot be erased")


@click.command()
@click.option("--patient", required=True, metavar="ID", type=NAMED, help="Whose notes.")
@collection_option
@pass_context
def release(context: CliContext, patient: str, collection: str) -> None:
    """End a patient's legal hold."""
    if not context.service.collection(collection).release(patient):
        raise click.BadParameter("is not under legal hold", param_hint="--patient")
    say(f"{collection}: the notes of patient {patient} can be erased again")


@click.command()
@collection_option
@json_option
@pass_context
def holds(context: CliContext, collection: str, as_json: bool) -> None:
    """List the patients under legal hold."""
    rows = context.service.collection(collection).holds()
    if as_json:
        found = [{"patient_id": row.patient_id, "reason": row.reason, "since": row.since} for row in rows]
        click.echo(json.dumps({"holds": found}, ensure_ascii=False))
        return
    for row in rows:
        say(f"{row.patient_id}  since {row.since}  {row.reason}")
    if not rows:
        click.echo("no patient is under legal hold")


@click.group()
def receipts() -> None:
    """List and check the signed receipts of erasures."""


@receipts.command(name="list")
@json_option
@pass_context
def list_(context: CliContext, as_json: bool) -> None:
    """List the receipts of this home folder, oldest first."""
    from indexer.receipts import Receipts

    kept = Receipts(context.settings.home)
    found = kept.all()
    if as_json:
        rows = [
            {
                "receipt_id": row.receipt_id,
                "collection": row.collection,
                "by": row.by,
                "erased_at": row.erased_at,
                "counts": row.counts,
                "file": str(kept.path(row.receipt_id)),
            }
            for row in found
        ]
        click.echo(json.dumps({"receipts": rows}))
        return
    for row in found:
        what = f"{counted(row.counts['notes'], 'note')} by {row.by}"
        click.echo(f"{row.erased_at}  {row.collection}  {what}  {kept.path(row.receipt_id)}")
    if not found:
        click.echo("no receipts: nothing was erased yet")


@receipts.command()
@click.argument("file", type=Place())
@click.option("--key", metavar="HEX", help="Another installation's public key; absent: this one's.")
@click.option("--covers", metavar="ID", type=NAMED, help="Say also whether this note or patient was asked for.")
@json_option
@pass_context
def verify(context: CliContext, file: Path, key: str | None, covers: str | None, as_json: bool) -> None:
    """Check a receipt's signature; exit 1 when it is not what this installation (or --key) signed."""
    from api.erasures import VerdictModel
    from indexer.receipts import Receipts

    verdict = Receipts(context.settings.home).verify(file, key)
    said = VerdictModel.of(verdict, covers)
    covered = said.covers
    if as_json:
        click.echo(said.json_text())
    elif verdict.good:
        click.echo(f"good: {counted(verdict.receipt.counts['notes'], 'note')} erased at {verdict.receipt.erased_at}")
    elif verdict.intact:
        click.echo("signed by another installation; --key HEX checks with its public key", err=True)
    else:
        click.echo("the signature does not fit: the receipt was changed", err=True)
    if covered is not None and not as_json:
        click.echo("that id is covered" if covered else "that id is not covered")
    if not verdict.good or covered is False:
        raise click.exceptions.Exit(1)


@receipts.command()
@pass_context
def key(context: CliContext) -> None:
    """Print the public key that this installation's receipts are checked with."""
    from indexer.receipts import Receipts

    click.echo(Receipts(context.settings.home).public_key())
