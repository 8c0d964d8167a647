"""`clinrag eval run | report | compare | seeds | tasks`: is it better, and how sure are we?"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import click

from api.cli.context import CliContext, pass_context
from api.cli.options import NAMED, Place, json_option

_DEFAULT_SYSTEMS = "bm25,{0},hybrid:{0},search:{0},search:{0}+any"
_FOLDER = Place(exists=True, file_okay=False)


@click.group("eval")
def evaluate() -> None:
    """Evaluate retrieval on judged sets, with intervals."""


@evaluate.command("run")
@click.argument("suite")
@click.option(
    "--systems", type=NAMED, help="Comma separated: bm25, ENCODER, ENCODER+mean, hybrid:ENCODER, search:ENCODER[+any]."
)
@click.option("--data", type=_FOLDER, help="The folder of the public sets [CLINRAG_DATA].")
@click.option("--out", type=Place(file_okay=False), help="Where files go [runs/SUITE].")
@click.option("--max-tokens", type=click.IntRange(8, 8192), default=256, show_default=True, help="Texts are cut there.")
@click.option("--queries", type=click.IntRange(min=1), help="Ask at most so many queries of each set, evenly drawn.")
@json_option
@pass_context
def run(
    context: CliContext,
    suite: str,
    systems: str | None,
    data: Path | None,
    out: Path | None,
    max_tokens: int,
    queries: int | None,
    as_json: bool,
) -> None:
    """Run systems over a SUITE (or one task): smoke, must, bitext, mixed, cases, public."""
    from api.evaluation import build_systems
    from eval.experiment import Row, run_suite
    from eval.report import parity_table, table
    from indexer.encoders.catalog import default_encoder_name

    default = default_encoder_name()
    names = systems.split(",") if systems else _DEFAULT_SYSTEMS.format(default).split(",")
    folder = out or Path("runs") / suite
    context.if_interrupted = "rows that were printed were measured; run it again for the whole"

    def say(row: Row) -> None:
        interval = row.interval
        click.echo(
            f"{row.set_name:34} {row.system:28} {row.main_metric} {interval.mean:.3f} "
            f"[{interval.low:.3f} {interval.high:.3f}]",
            err=as_json,
        )

    rows, parities = run_suite(
        suite,
        build_systems([name.strip() for name in names], max_tokens=max_tokens),
        out=folder,
        data=data or context.settings.data,
        command=shlex.join(["clinrag", *sys.argv[1:]]),
        max_queries=queries,
        on_row=say,
    )
    equality = [asdict(one) for one in parities]
    if as_json:
        said = {"suite": suite, "folder": str(folder), "rows": [asdict(row) for row in rows], "parity": equality}
        click.echo(json.dumps(said))
        return
    click.echo(f"\n{table([asdict(row) for row in rows])}\n")
    if equality:
        click.echo(f"{parity_table(equality)}\n")
    click.echo(f"files: {folder}")


@evaluate.command("report")
@click.argument("folder", type=_FOLDER)
def report(folder: Path) -> None:
    """Write report.html, heatmap.png and bars.png beside a run's results; print how fair to languages systems are."""
    from eval.experiment import load_results
    from eval.report import parity_table, write_report

    page = write_report(folder)
    equality = load_results(folder).get("parity", [])
    if equality:
        click.echo(f"{parity_table(equality)}\n")
    click.echo(page)


@evaluate.command("compare")
@click.argument("first")
@click.argument("second")
@click.option("--folder", type=_FOLDER, required=True, help="The run's folder.")
@click.option("--other-folder", type=_FOLDER, help="The folder of the second system, where it is another.")
@json_option
def compare(first: str, second: str, folder: Path, other_folder: Path | None, as_json: bool) -> None:
    """Compare two systems query by query: FIRST minus SECOND with a paired bootstrap interval."""
    from eval.experiment import compare as compare_runs

    found = compare_runs(folder, first, second, other_folder=other_folder)
    if as_json:
        click.echo(json.dumps({"first": first, "second": second, "sets": [asdict(one) for one in found]}))
        return
    for one in found:
        change = one.difference
        verdict = "=" if not change.excludes_zero else "better" if change.mean > 0 else "worse"
        click.echo(
            f"{one.set_name:34} {one.main_metric:10} {change.n:5} {one.first:.3f} {one.second:.3f}  "
            f"{change.mean:+.3f} [{change.low:+.3f} {change.high:+.3f}] {verdict}"
        )


@evaluate.command("seeds")
@click.option("--folder", type=_FOLDER, required=True, help="The run's folder, every system in it.")
@click.option(
    "--group", "groups", multiple=True, required=True, metavar="NAME=SYSTEM,...", help="Systems of like training."
)
@json_option
def seeds(folder: Path, groups: tuple[str, ...], as_json: bool) -> None:
    """Mean and spread over seeds, every group against the first by Welch's t-test with Holm's correction."""
    from eval.seeds import compare_seeds, seeds_table

    named = {}
    for group in groups:
        name, equals, systems = group.partition("=")
        if not (name and equals) or name in named:
            raise click.BadParameter(f"'{group}' is not NAME=SYSTEM,... with its own name", param_hint="--group")
        named[name] = [system for system in systems.split(",") if system]
    rows = compare_seeds(folder, named)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "sets": [asdict(row) for row in rows]}))
        return
    click.echo(seeds_table(rows))


@evaluate.command("tasks")
@click.argument("suite", default="public")
def tasks(suite: str) -> None:
    """List the tasks of a SUITE with their sources and licences."""
    from eval.tasks.declaration import load_tasks

    for task in load_tasks(suite):
        click.echo(f"{task.name:26} {' '.join(task.languages):34} {task.main_metric:10} {task.licence}: {task.source}")
