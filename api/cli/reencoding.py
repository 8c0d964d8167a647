"""`clinrag collections reencode`, `cutover`, `rollback` and `discard`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from api.cli.context import CliContext, pass_context
from api.cli.options import NAMED, Place, json_option

if TYPE_CHECKING:
    from api.cli.progress import ProgressLine
    from api.reencoding import Comparison

_AGAIN = "nothing lost; run the same command again to go on"
_judged = click.option(
    "--judged",
    type=Place(dir_okay=False),
    help='Questions with the spans that answer them (JSON lines: "id", "question", "relevant").',
)


@click.command()
@click.argument("name")
@click.option("--encoder", required=True, type=NAMED, metavar="NAME", help="hashing, compact, a folder or a hub id.")
@_judged
@json_option
@pass_context
def reencode(context: CliContext, name: str, encoder: str, judged: Path | None, as_json: bool) -> None:
    """Make the vectors of another encoder beside the live ones; searches and imports go on meanwhile."""
    from api import reencoding
    from api.cli.progress import ProgressLine

    context.if_interrupted = _AGAIN
    with ProgressLine(f"re-encoding {name}", "notes", quiet=as_json) as line:
        copied, made = reencoding.reencode(context.service, name, encoder, _shown_on(line))
    comparison = None if judged is None else reencoding.compare(context.service, name, judged)
    if as_json:
        said = {"collection": name, "encoder": made.encoder_name, "embedded": copied, "done": made.done}
        click.echo(json.dumps(said | {"total": made.total, "comparison": _fields(comparison)}))
        return
    click.echo(f"{name}: {made.done:,} of {made.total:,} note versions have vectors of {encoder} ({copied:,} made now)")
    _show(comparison)
    click.echo(f'  "clinrag collections cutover {name}" makes them the live ones')


@click.command()
@click.argument("name")
@_judged
@click.option("--force", is_flag=True, help="Cut over though the other encoder finds less, or nothing tells.")
@json_option
@pass_context
def cutover(context: CliContext, name: str, judged: Path | None, force: bool, as_json: bool) -> None:
    """Make the re-encoded vectors the live ones, unless they find less on judged questions."""
    from api import reencoding
    from api.cli.progress import ProgressLine

    context.if_interrupted = _AGAIN
    with ProgressLine(f"catching up {name}", "notes", quiet=as_json) as line:
        comparison = reencoding.cutover(context.service, name, judged, force=force, on_progress=_shown_on(line))
    live = context.service.collection(name).encoder_name
    if as_json:
        click.echo(json.dumps({"collection": name, "encoder": live, "comparison": _fields(comparison)}))
        return
    click.echo(f"{name}: answers with {live} from here on")
    _show(comparison)
    click.echo(f'  "clinrag collections rollback {name}" goes back, "discard" removes the former vectors')


@click.command()
@click.argument("name")
@json_option
@pass_context
def rollback(context: CliContext, name: str, as_json: bool) -> None:
    """Go back to the vectors of before the cutover; notes stored since are kept."""
    from api import reencoding
    from api.cli.progress import ProgressLine

    context.if_interrupted = _AGAIN
    with ProgressLine(f"catching up {name}", "notes", quiet=as_json) as line:
        live = reencoding.rollback(context.service, name, _shown_on(line)).encoder_name
    if as_json:
        click.echo(json.dumps({"collection": name, "encoder": live}))
        return
    click.echo(f"{name}: answers with {live} again")


@click.command()
@click.argument("name")
@pass_context
def discard(context: CliContext, name: str) -> None:
    """Remove the vectors beside the live ones: half-made ones, or those kept for a rollback."""
    from indexer.reencoding import discard as remove

    found = remove(context.service.collection(name))
    click.echo(f"{name}: removed what lay beside" if found else f"{name}: nothing lies beside its vectors")


def _shown_on(line: ProgressLine) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        line.total = total
        line.show(done)

    return show


def _fields(comparison: Comparison | None) -> dict[str, object] | None:
    if comparison is None:
        return None
    change = comparison.change
    return {
        "questions": comparison.questions,
        "live": {
            "encoder": comparison.live,
            "nDCG@10": round(comparison.live_ndcg, 4),
            "recall@10": round(comparison.live_recall, 4),
        },
        "other": {
            "encoder": comparison.other,
            "nDCG@10": round(comparison.other_ndcg, 4),
            "recall@10": round(comparison.other_recall, 4),
        },
        "change": {"mean": round(change.mean, 4), "low": round(change.low, 4), "high": round(change.high, 4)},
    }


def _show(comparison: Comparison | None) -> None:
    if comparison is None:
        return
    change = comparison.change
    click.echo(f"  judged by {comparison.questions} questions:   nDCG@10  recall@10")
    click.echo(f"    {comparison.live:<24}   {comparison.live_ndcg:.3f}    {comparison.live_recall:.3f}")
    click.echo(f"    {comparison.other:<24}   {comparison.other_ndcg:.3f}    {comparison.other_recall:.3f}")
    click.echo(f"    change of nDCG@10 {change.mean:+.3f} (95 % {change.low:+.3f} to {change.high:+.3f})")
