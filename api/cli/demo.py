"""`clinrag demo`: what `make demo` runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from api.cli.context import CliContext, pass_context
from indexer.errors import CollectionNotFoundError

if TYPE_CHECKING:
    from rich.console import Console

    from api.service import Service
    from eval.bundled import BundledQuestion

_COLLECTION = "demo"
_SHOWN = 6


@click.command()
@click.option("-c", "--collection", default=_COLLECTION, show_default=True, metavar="NAME", help="Where the notes go.")
@click.option("--encoder", metavar="NAME", help="hashing, compact, ...; absent: the default one.")
@click.option("--questions", "n_questions", type=click.IntRange(1), default=_SHOWN, show_default=True, help="How many.")
@pass_context
def demo(context: CliContext, collection: str, encoder: str | None, n_questions: int) -> None:
    """Index the bundled invented notes and ask them across languages."""
    from api.cli.output import console, print_answer
    from api.service import Question
    from eval.bundled import load_questions
    from indexer.records import Scope

    context.if_interrupted = "nothing lost; run the same command again"
    out = console()
    service = context.service
    name = encoder or service.default_encoder()
    _fresh(service, collection)
    _index(service, collection, name, out)
    questions = chosen([question for question in load_questions() if question.as_of is None], n_questions)
    for number, asked in enumerate(questions, 1):
        out.print()
        out.rule(f"{number}/{len(questions)} · {_about(asked)}", align="left")
        out.print(asked.question, style="bold cyan")
        scope = Scope(patient_id=asked.patient_id)
        print_answer(service.ask(Question(asked.question, collection, scope, 10)), out)
    out.print()
    out.print("Go on with:")
    out.print(f'  clinrag search "kidney failure after contrast" --collection {collection}')
    patient = next((asked.patient_id for asked in questions if asked.patient_id), "ID")
    out.print(f'  clinrag ask "¿Qué anticoagulante toma?" --collection {collection} --patient {patient}')


def _fresh(service: Service, collection: str) -> None:
    """Remove an earlier demo collection; one that holds any other note is left alone and added to."""
    from eval.bundled import notes_path

    try:
        found = service.collection(collection)
    except CollectionNotFoundError:
        return
    with notes_path().open(encoding="utf-8") as lines:
        bundled = {str(json.loads(line)["id"]) for line in lines}
    behind: str | None = None
    while page := found.list_notes(behind, 500):
        if any(note.note_id not in bundled for note in page):
            return
        behind = page[-1].note_id
    service.delete_collection(collection)


def _index(service: Service, collection: str, encoder: str, out: Console) -> None:
    from api.cli.progress import IndexProgress
    from eval.bundled import notes_path
    from indexer.readers import read_sources

    out.print(f"Indexing the bundled notes with the encoder '{encoder}' ...")
    if encoder == "hashing":
        out.print(
            "This encoder compares spelling, not meaning: across languages it finds names, drugs and numbers that are "
            "written alike, and dense retrieval between languages is limited. The trained multilingual encoder is not "
            "part of this install.",
            style="yellow",
        )
    target = service.open_or_create(collection, encoder)
    with IndexProgress([notes_path()], None, None, quiet=False) as progress:
        report = service.index(target, read_sources([notes_path()]), progress.update)
    info = service.describe(collection)
    languages = ", ".join(f"{code or 'unknown'} {count}" for code, count in info.languages.items())
    out.print(
        f"{info.notes} notes, {info.chunks} passages ({languages}); {report.stored} stored, "
        f"{report.skipped} unchanged, {len(report.rejected)} rejected"
    )


def chosen(questions: Sequence[BundledQuestion], count: int) -> list[BundledQuestion]:
    """Return questions of as many languages and patients as there are places; the last has no answer, if any has."""
    without = [question for question in questions if not question.answerable][: 1 if count > 1 else 0]
    left = [question for question in questions if question.answerable]
    picked: list[BundledQuestion] = []
    while left and len(picked) < count - len(without):
        languages = Counter(question.language for question in picked)
        patients = Counter(question.patient_id for question in picked)
        best = min(left, key=lambda question: languages[question.language] + patients[question.patient_id])
        picked.append(best)
        left.remove(best)
    return picked + without


def _about(question: BundledQuestion) -> str:
    scope = f"patient {question.patient_id}" if question.patient_id else "all patients"
    return f"asked in {question.language}, {scope}"
