"""`clinrag collections`."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click

from api.cli import keeping, reencoding, rekeying, scanning
from api.cli.context import CliContext, pass_context
from api.cli.options import NAMED, json_option, scope_of, scope_options
from api.cli.terminal import counted, say

_FACETS_SHOWN = 10


@click.group()
def collections() -> None:
    """Make, list, check, back up and remove collections."""


@collections.command()
@click.argument("name")
@click.option(
    "--encoder", type=NAMED, metavar="NAME", help="hashing, compact, multiclinicalbert, a folder or a hub id."
)
@click.option("--encrypted", is_flag=True, help="Encrypt it at rest, with a key for each patient.")
@json_option
@pass_context
def create(context: CliContext, name: str, encoder: str | None, encrypted: bool, as_json: bool) -> None:
    """Make an empty collection."""
    made = context.service.create(name, encoder or context.service.default_encoder(), encrypted=encrypted)
    if as_json:
        click.echo(context.service.describe(name).json_text())
    else:
        how = f"encoder {made.encoder_name}, {made.spec.dim} dimensions" + (", encrypted" if encrypted else "")
        click.echo(f"made collection {name} ({how})")
        if encrypted:
            keys = context.service.library.keyrings.path(made.collection_id)
            click.echo(f"  its keys: {keys}; keep a copy of them and of the master key apart from backups")


@collections.command(name="list")
@json_option
@pass_context
def list_(context: CliContext, as_json: bool) -> None:
    """List the collections."""
    rows, damaged = context.service.describe_all(context.service.library.names())
    if as_json:
        listed = [row.model_dump() for row in rows]
        click.echo(json.dumps({"collections": listed, "damaged": damaged}, ensure_ascii=False))
        return
    if not rows and not damaged:
        click.echo('no collections yet; "clinrag index FILE --collection NAME" makes one')
        return
    width = max([len("NAME"), *(len(row.name) for row in rows)])
    click.echo(f"{'NAME':<{width}}  {'NOTES':>9}  {'PASSAGES':>9}  {'MB':>8}  ENCODER")
    for row in rows:
        click.echo(f"{row.name:<{width}}  {row.notes:>9,}  {row.chunks:>9,}  {row.bytes / 1e6:>8,.1f}  {row.encoder}")
    for name in damaged:
        click.echo(f'{name}: cannot be read; "clinrag collections verify {name}" says what is wrong', err=True)


@collections.command()
@click.argument("name")
@json_option
@pass_context
def info(context: CliContext, name: str, as_json: bool) -> None:
    """Say what a collection holds."""
    found = context.service.describe(name)
    if as_json:
        click.echo(found.json_text())
        return
    languages = ", ".join(f"{code or 'unknown'} {count:,}" for code, count in found.languages.items())
    rows = {
        "collection": found.name,
        "encoder": f"{found.encoder} ({found.dim} dimensions, fingerprint {found.fingerprint[:12]})",
        "notes": f"{found.notes:,} ({counted(found.versions, 'version')})",
        "passages": f"{found.chunks:,}",
        "languages": languages or "none",
        "authored": "undated" if found.first is None else f"{found.first} to {found.last}",
        "size": f"{found.bytes / 1e6:,.1f} MB",
        "made": found.created_at or "unknown",
        "changes": f"{found.seq:,}",
        "format": str(found.format_version),
        "encrypted": "yes, with a key for each patient" if found.encrypted else "no",
    }
    for key, value in rows.items():
        click.echo(f"{key + ':':<12}{value}")


@collections.command()
@click.argument("name")
@json_option
@pass_context
def verify(context: CliContext, name: str, as_json: bool) -> None:
    """Check every stored byte against its checksum; exit 1 when something is wrong."""
    from api.cli.progress import busy

    with busy(f"checking {name} ..."):
        findings = context.service.collection(name).verify()
    if as_json:
        rows = [{"where": found.where, "what": found.what, "mend": found.mend} for found in findings]
        click.echo(json.dumps({"collection": name, "findings": rows}, ensure_ascii=False))
    else:
        for found in findings:
            say(f"{found.where}: {found.what}; {found.mend}")
        click.echo(f"{name}: {counted(len(findings), 'finding')}" if findings else f"{name}: all good")
    if findings:
        raise click.exceptions.Exit(1)


@collections.command()
@click.argument("name")
@pass_context
def rebuild(context: CliContext, name: str) -> None:
    """Make the derived files (vector and lexical index) anew from the stored notes."""
    context.if_interrupted = "nothing lost; run the same command again"
    from api.cli.progress import busy

    with busy(f"rebuilding {name} ..."):
        context.service.collection(name).rebuild()
    click.echo(f"{name}: derived files are rebuilt")


@collections.command()
@click.argument("name")
@click.option("--with-keys", is_flag=True, help="Destroy its keys too: no backup of it can be read any more.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_context
def delete(context: CliContext, name: str, with_keys: bool, yes: bool) -> None:
    """Remove a collection with everything in it."""
    if not yes:
        click.confirm(f"delete collection {name} {_size(context, name)}?", abort=True)
    context.service.delete_collection(name, with_keys=with_keys)
    click.echo(f"deleted collection {name}")


def _size(context: CliContext, name: str) -> str:
    """Return what is in a collection; one that cannot be read can be deleted too, as its name may be needed."""
    from indexer.errors import DamagedError, KeysError

    try:
        return f"with {counted(context.service.collection(name).info().notes, 'note')}"
    except (DamagedError, KeysError) as exc:
        return f"unread ({exc})"


@collections.command()
@click.argument("name")
@scope_options
@json_option
@pass_context
def facets(context: CliContext, /, name: str, as_json: bool, **options: object) -> None:
    """Count the notes and passages of a scope by language, section, type and patient."""
    found = context.service.collection(name).view(scope_of(options)).facets()
    counts: dict[str, Mapping[str | None, int]] = {
        "languages": found.languages,
        "sections": found.sections,
        "note_types": found.note_types,
        "patients": found.patients,
    }
    if as_json:
        from api.facets import facets_model

        click.echo(facets_model(name, found).json_text())
        return
    click.echo(f"{name}: {counted(found.notes, 'note')}, {counted(found.passages, 'passage')}")
    for key, values in counts.items():
        shown = ", ".join(f"{value or 'unknown'} {count:,}" for value, count in list(values.items())[:_FACETS_SHOWN])
        more = f" and {len(values) - _FACETS_SHOWN:,} more" if len(values) > _FACETS_SHOWN else ""
        say(f"{key.replace('_', ' ') + ':':<12}{shown or 'none'}{more}")


for command in (
    keeping.backup,
    keeping.restore,
    keeping.repair,
    reencoding.reencode,
    reencoding.cutover,
    reencoding.rollback,
    reencoding.discard,
    rekeying.rekey,
    scanning.scan,
):
    collections.add_command(command)
