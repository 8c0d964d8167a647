"""`clinrag serve` and `clinrag keys`."""

from __future__ import annotations

import json
from dataclasses import replace

import click

from api.cli.context import CliContext, pass_context
from api.cli.options import json_option


@click.command()
@click.option("--host", help="The address to listen on [CLINRAG_HOST, 127.0.0.1]; another than loopback needs keys.")
@click.option("--port", type=click.IntRange(0, 65_535), help="The port [CLINRAG_PORT, 8000]; 0 takes a free one.")
@pass_context
def serve(context: CliContext, host: str | None, port: int | None) -> None:
    """Serve search, answers and collections over HTTP."""
    from api.server import run

    settings = context.settings
    context.if_interrupted = "the server has stopped; nothing is lost"
    run(replace(settings, host=host or settings.host, port=settings.port if port is None else port))


@click.group()
def keys() -> None:
    """Make, list and revoke the keys of the HTTP server."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(["read", "write"]),
    help="read: search and show; write: store and delete. Give both for both.",
)
@json_option
@pass_context
def add(context: CliContext, name: str, scopes: tuple[str, ...], as_json: bool) -> None:
    """Make a key and print it, this one time."""
    from api.keys import KeyFile, KeyScope

    key, secret = KeyFile(context.settings.home).add(name, [KeyScope(scope) for scope in scopes])
    if as_json:
        click.echo(json.dumps({"name": key.name, "id": key.key_id, "scopes": key.scopes, "key": secret}))
        return
    click.echo(secret)
    click.echo(f"key {key.name} ({', '.join(key.scopes)}): keep it now, it is stored as a hash only", err=True)
    click.echo("from now on this home's server asks for a key, on loopback too", err=True)


@keys.command(name="list")
@json_option
@pass_context
def list_(context: CliContext, as_json: bool) -> None:
    """List the keys, never what they are."""
    from api.keys import KeyFile

    rows = [
        {
            "name": key.name,
            "id": key.key_id,
            "scopes": list(key.scopes),
            "created_at": key.created_at,
            "revoked_at": key.revoked_at,
        }
        for key in KeyFile(context.settings.home).all()
    ]
    if as_json:
        click.echo(json.dumps({"keys": rows}))
        return
    if not rows:
        click.echo('no keys; "clinrag keys add NAME --scope read" makes one')
    for row in rows:
        state = "works" if row["revoked_at"] is None else f"revoked {row['revoked_at']}"
        click.echo(f"{row['name']}  {row['id']}  {','.join(row['scopes'] or [])}  {row['created_at']}  {state}")


@keys.command()
@click.argument("name")
@pass_context
def revoke(context: CliContext, name: str) -> None:
    """Take a key's power away, at once also in running servers."""
    from api.keys import KeyFile

    key = KeyFile(context.settings.home).revoke(name)
    click.echo(f"key {key.name} is revoked")
