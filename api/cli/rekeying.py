"""`clinrag collections rekey`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from api.cli.context import CliContext, pass_context
from api.cli.options import json_option
from api.cli.terminal import counted
from indexer.errors import ArgumentError, KeysError


@click.command()
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="All keys of the home folder, those of deleted collections too.")
@json_option
@pass_context
def rekey(context: CliContext, name: str | None, every: bool, as_json: bool) -> None:
    """Put the keys of an encrypted collection under a new master key, CLINRAG_NEW_MASTER_KEY_FILE.

    Notes and backups stay as they are and open with the new one. Run it again after an interruption.
    """
    from indexer.encryption import MasterKey

    if (name is None) != every:
        raise click.UsageError("give a NAME or --all")
    context.if_interrupted = "the keys are under the old master key or the new one; run the same command again"
    library = context.service.library
    new = MasterKey(context.settings.new_master_key_file, context.settings.new_passphrase, new=True)
    named = library.encrypted()
    ids = library.keyrings.ids() if name is None else [library.keys_of(name)]
    if not ids:
        raise ArgumentError("--all", "finds no keys: nothing here is encrypted")
    new.check()
    done: list[dict[str, object]] = []
    failed: dict[str, str] = {}
    for collection_id in ids:
        names = named.get(collection_id, [])
        whose = ", ".join(names) or f"a deleted collection ({collection_id})"
        try:
            rekeyed = library.keyrings.rekey(collection_id, new)
        except (ArgumentError, KeysError) as exc:
            if not every:
                raise
            failed[whose] = str(exc)
            continue
        done.append({"collections": names, "collection_id": collection_id, **asdict(rekeyed)})
        if not as_json:
            already = " already" if rekeyed.already else ""
            click.echo(f"{whose}: under the new master key{already}, {counted(rekeyed.keys, 'data key')}")
    if as_json:
        click.echo(json.dumps({"rekeyed": done}, ensure_ascii=False))
    elif done:
        click.echo("  name it as CLINRAG_MASTER_KEY_FILE (or CLINRAG_PASSPHRASE) from now on; copies of keyring/ from")
        click.echo("  before open with the old one: copy keyring/ anew and let them go")
    if failed:
        raise KeysError("; ".join(f"{whose}: {why}" for whose, why in failed.items()))
