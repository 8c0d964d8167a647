"""`clinrag train`: any encoder into a cross-lingual clinical retriever, by a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from api.cli.context import CliContext, pass_context
from api.cli.options import Place, json_option

if TYPE_CHECKING:
    from rag.training.pipeline import TrainProgress

_FOLDER = Place(file_okay=False)


@click.command("train")
@click.argument("recipe")
@click.option("--out", type=_FOLDER, required=True, help="The run's folder; a run that was cut off goes on there.")
@click.option("--data", type=Place(exists=True, file_okay=False), help="Training data [CLINRAG_DATA].")
@json_option
@pass_context
def train(context: CliContext, recipe: str, out: Path, data: Path | None, as_json: bool) -> None:
    """Run a RECIPE: a TOML file, or the name of one that comes with clinrag (a wrong name lists them)."""
    from rag.training.pipeline import run_recipe
    from rag.training.recipe import recipe_path

    path = recipe_path(recipe)
    folder = data or context.settings.data
    if folder is None:
        raise click.UsageError("name the training data with --data DIR or CLINRAG_DATA")
    context.if_interrupted = "the same command goes on from the last checkpoint"

    def say(progress: TrainProgress) -> None:
        figures = ", ".join(f"{key} {value}" for key, value in progress.row.items() if key not in {"share", "rate"})
        click.echo(f"{progress.stage} {progress.number}/{progress.total} {progress.share:.0%}: {figures}", err=True)

    report = run_recipe(path, out, folder, None, say)
    if as_json:
        packed = str(report.packed) if report.packed else None
        click.echo(json.dumps({"model": str(report.model), "packed": packed, "card": str(report.card)}))
        return
    click.echo(f"take it with: clinrag index --encoder {report.packed or report.model}")
