"""`clinrag demo`: what `make demo` runs."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from api.cli.context import CliContext, pass_context
from api.cli.options import NAMED
from indexer.errors import ArgumentError, CollectionNotFoundError

if TYPE_CHECKING:
    from rich.console import Console

    from api.service import Service
    from eval.bundled import BundledQuestion

_COLLECTION = "demo"
_SHOWN = 6
_BY_SPELLING = "hashing"
_LONG_WORD = re.compile(r"[a-z]{8,}")


@click.command()
@click.option("-c", "--collection", default=_COLLECTION, show_default=True, metavar="NAME", help="Where the notes go.")
@click.option("--encoder", type=NAMED, metavar="NAME", help="hashing, compact, ...; absent: the default one.")
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
    written_in = _languages()
    _fresh(service, collection, written_in)
    _index(service, collection, name, out)
    questions = [question for question in load_questions() if question.as_of is None]
    if name == _BY_SPELLING:
        questions = [question for question in questions if not question.answerable or _spelt_alike(question)]
    questions = chosen(questions, written_in, n_questions)
    for number, asked in enumerate(questions, 1):
        out.print()
        out.rule(f"{number}/{len(questions)} · {_about(asked, written_in)}", align="left")
        out.print(asked.question, style="bold cyan")
        scope = Scope(patient_id=asked.patient_id)
        print_answer(service.ask(Question(asked.question, collection, scope, 10)), out)
    out.print()
    out.print("Go on with:")
    out.print(f'  clinrag search "kidney failure after contrast" --collection {collection}')
    patient = next((asked.patient_id for asked in questions if asked.patient_id), "ID")
    out.print(f'  clinrag ask "¿Qué anticoagulante toma?" --collection {collection} --patient {patient}')


def _languages() -> dict[str, str]:
    """Return the language of each bundled note by its id."""
    from eval.bundled import notes_path

    with notes_path().open(encoding="utf-8") as lines:
        return {str(note["id"]): str(note.get("language") or "") for note in map(json.loads, lines)}


def _fresh(service: Service, collection: str, bundled: Mapping[str, str]) -> None:
    """Remove an earlier demo collection; an empty one is taken as it is.

    Raises:
        ArgumentError: it holds any other note: invented ones must not stand among those of patients.
    """
    try:
        found = service.collection(collection)
    except CollectionNotFoundError:
        return
    behind: str | None = None
    while page := found.list_notes(behind, 500):
        if any(note.note_id not in bundled for note in page):
            raise ArgumentError("collection", "holds notes that are not the demo's; name another with --collection")
        behind = page[-1].note_id
    if behind is not None:
        service.delete_collection(collection)


def _index(service: Service, collection: str, encoder: str, out: Console) -> None:
    from api.cli.progress import IndexProgress
    from eval.bundled import notes_path
    from indexer.readers import read_sources

    out.print(f"Indexing the bundled notes with the encoder '{encoder}' ...")
    if encoder == _BY_SPELLING:
        out.print(
            "This encoder compares spelling, not meaning: across languages it finds names, drugs and numbers that are "
            "written alike, and dense retrieval between languages is limited. The questions below name such a thing. "
            + _trained(),
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


def _trained() -> str:
    from indexer.encoders.catalog import default_encoder_name

    trained = default_encoder_name()
    if trained == _BY_SPELLING:
        return "The trained multilingual encoder is not part of this install."
    return f"The trained multilingual one is '{trained}'."


def chosen(questions: Sequence[BundledQuestion], written_in: Mapping[str, str], count: int) -> list[BundledQuestion]:
    """Return questions about notes in another language than their own, of as many languages, patients and kinds as fit.

    The last one has no answer in the record, where there is such a question and room for it.
    """
    without = [question for question in questions if not question.answerable][: 1 if count > 1 else 0]
    left = [
        question
        for question in questions
        if question.answerable and question.patient_id and question.language not in _answered_in(question, written_in)
    ]
    picked: list[BundledQuestion] = []
    while left and len(picked) < count - len(without):
        seen = Counter(value for other in picked for value in (other.language, other.patient_id, other.kind))
        best = min(left, key=lambda each: seen[each.language] + seen[each.patient_id] + seen[each.kind])
        picked.append(best)
        left.remove(best)
    return picked + without


def _answered_in(question: BundledQuestion, written_in: Mapping[str, str]) -> list[str]:
    return sorted({written_in.get(relevant.note_id, "") for relevant in question.relevant} - {""})


def _spelt_alike(question: BundledQuestion) -> bool:
    """Say whether the question and an answering span share a long word, as names of drugs are."""

    def words(text: str) -> set[str]:
        return set(_LONG_WORD.findall(text.lower()))

    return any(words(question.question) & words(relevant.quote) for relevant in question.relevant)


def _about(question: BundledQuestion, written_in: Mapping[str, str]) -> str:
    scope = f"patient {question.patient_id}" if question.patient_id else "all patients"
    languages = ", ".join(_answered_in(question, written_in))
    where = f"the notes that answer are in {languages}" if languages else "no note answers it"
    return f"asked in {question.language}, {scope}; {where}"
