"""`clinrag collections facets`."""

from __future__ import annotations

from collections.abc import Mapping

import click

from api.cli.context import CliContext, pass_context
from api.cli.counts import counted
from api.cli.options import json_option, scope_of, scope_options
from api.cli.terminal import say

_SHOWN = 10


@click.command()
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
        shown = ", ".join(f"{value or 'unknown'} {count:,}" for value, count in list(values.items())[:_SHOWN])
        more = f" and {len(values) - _SHOWN:,} more" if len(values) > _SHOWN else ""
        say(f"{key.replace('_', ' ') + ':':<12}{shown or 'none'}{more}")
