"""The training rows that the project wrote itself: names of medicines, clinical words and questions, by language.

Three files beside this module: ``medicines.tsv`` and ``words.tsv`` (a column a language, alternatives between bars)
and ``asked.jsonl`` (a question in many languages and the English passage that answers it).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rag.training.heldout import HeldOut, normalised, read_rows

_FOLDER = Path(__file__).parent / "written"
_TABLES = ("medicines", "words")
Row = dict[str, Any]


def written_terms(held_out: HeldOut) -> Iterator[Row]:
    """Yield the term rows that are not evaluated, as `pairs.term_rows` does.

    A row whose English name is that of an evaluated concept goes as a whole; elsewhere an evaluated label does.
    """
    seen: set[str] = set()
    for name in _TABLES:
        with (_FOLDER / f"{name}.tsv").open(encoding="utf-8", newline="") as stream:
            for number, line in enumerate(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE), 2):
                terms = {
                    language: [part.strip() for part in cell.split("|") if part.strip()]
                    for language, cell in line.items()
                }
                english = [normalised(term) for term in terms["en"]]
                if any(map(held_out.names_concept, terms["en"])) or seen.intersection(english):
                    continue
                seen.update(english)
                free = {
                    language: kept
                    for language, found in terms.items()
                    if (kept := [term for term in found if not _is_evaluated(held_out, language, term)])
                }
                if "en" in free and len(free) > 1:
                    yield {"id": f"{name}:{number}", "source": f"written/{name}", "terms": free, "parents": []}


def written_questions(held_out: HeldOut) -> Iterator[Row]:
    """Yield question rows as `pairs.question_rows` does, with the question's wording by language in ``questions``."""
    answers: dict[str, int] = {}
    for number, row in enumerate(read_rows(_FOLDER / "asked.jsonl"), 1):
        if held_out.overlaps_answer(row["answer"], most=0) or any(map(held_out.holds_text, row["questions"].values())):
            continue
        yield {
            "id": f"asked:{number}",
            "source": "written/asked",
            # two answers on one topic are each other's hard negatives, two questions with one answer are not
            "kind": str(answers.setdefault(row["answer"], len(answers))),
            "topic": row["topic"],
            "question": row["questions"]["en"],
            "questions": row["questions"],
            "answer": row["answer"],
        }


def written_bitext(held_out: HeldOut) -> Iterator[Row]:
    """Yield each question's wordings as parallel text."""
    for row in written_questions(held_out):
        yield {"id": row["id"], "source": row["source"], "texts": row["questions"]}


def _is_evaluated(held_out: HeldOut, language: str, term: str) -> bool:
    return held_out.holds_term(language, term) or (language != "en" and held_out.holds_text(term))
