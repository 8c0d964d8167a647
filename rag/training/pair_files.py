"""Files of pairs, labels and parallel text that a user brings, read strictly, and the row that all of them become.

A wrong row is refused with its file and line before anything is written: training on half a file helps nobody.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from indexer.errors import SourceError
from indexer.text.language import identify
from rag.training.heldout import LANGUAGES, HeldOut, numbered_rows

Labels = Mapping[str, Mapping[str, Sequence[str]]]
"""Concept -> language -> names."""


@dataclass(frozen=True, slots=True)
class PairRow:
    """A query, the passage that answers it, passages that do not, and whom and what it is of."""

    id: str
    source: str
    kind: str
    query: str
    language: str
    passage: str
    passage_language: str
    negatives: tuple[str, ...] = ()
    patient: str = ""
    note: str = ""
    concepts: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> PairRow:
        """Return the row that `write_pairs` wrote."""
        return cls(**{**row, "negatives": tuple(row["negatives"]), "concepts": tuple(row["concepts"])})


def read_labels(files: Sequence[Path], held_out: HeldOut) -> dict[str, dict[str, list[str]]]:
    """Return the names of concepts by language, of JSON lines ``{"concept", "language", "term"}``.

    Evaluated concepts and terms are left out.

    Raises:
        SourceError: a row lacks one of them; the message names file and line.
    """
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in files:
        for number, row in numbered_rows(path):
            concept, language, term = (_string(path, number, row, key) for key in ("concept", "language", "term"))
            if language not in LANGUAGES or held_out.holds_concept(concept):
                continue
            if not (held_out.holds_term(language, term) or held_out.holds_text(term)):
                found[concept][language].append(term)
    return {
        concept: {key: list(dict.fromkeys(names)) for key, names in terms.items()} for concept, terms in found.items()
    }


def read_parallel(files: Sequence[Path], held_out: HeldOut) -> list[dict[str, Any]]:
    """Return ``{"id", "source", "document", "texts"}`` of JSON lines with a text for each language as its key.

    Raises:
        SourceError: a row has an empty side or fewer than two languages; the message names file and line.
    """
    found = []
    for path in files:
        for number, row in numbered_rows(path):
            texts = {key: row[key] for key in LANGUAGES if isinstance(row.get(key), str)}
            empty = sorted(key for key, text in texts.items() if not text.strip())
            if empty:
                raise SourceError(f"{path.name} line {number}: the side {empty[0]} is empty; fill it or drop the row")
            if len(texts) < 2:
                has = ", ".join(texts) or "none"
                raise SourceError(f"{path.name} line {number}: has texts in {has}; a row needs two languages")
            if any(map(held_out.holds_text, texts.values())):
                continue
            identity = str(row.get("id", f"{path.name}:{number}"))
            document = str(row.get("document", identity))
            found.append({"id": identity, "source": path.stem, "document": document, "texts": texts})
    return found


def translation_rows(parallel: Iterable[Mapping[str, Any]], seed: int = 0) -> Iterator[PairRow]:
    """Yield one pair of two languages of each parallel row, either way round."""
    for row in parallel:
        chance = random.Random(f"{seed}/{row['id']}")  # noqa: S311 - no secret
        one, other = chance.sample(sorted(row["texts"]), 2)
        texts = row["texts"]
        yield PairRow(
            str(row["id"]),
            str(row["source"]),
            "translation",
            texts[one],
            one,
            texts[other],
            other,
            note=str(row["document"]),
        )


def read_pairs(files: Sequence[Path], held_out: HeldOut) -> list[PairRow]:
    """Return the pairs of JSON lines ``{"query", "passage"}``; evaluated ones are left out.

    Optional keys: ``language`` and ``passage_language`` (else told from the text), ``negatives`` (a list of texts),
    ``patient_id``, ``note_id`` and ``concepts`` (for the split), ``kind``.

    Raises:
        SourceError: an empty side, a language that cannot be told, another type; the message names file and line.
    """
    found = []
    for path in files:
        for number, row in numbered_rows(path):
            query, passage = (_string(path, number, row, key) for key in ("query", "passage"))
            languages = []
            for key, text in (("language", query), ("passage_language", passage)):
                language = row.get(key) or identify(text)
                if language not in LANGUAGES:
                    told = f"is {language}" if language else "is missing and cannot be told from the text"
                    raise SourceError(f"{path.name} line {number}: {key} {told}; give one of {', '.join(LANGUAGES)}")
                languages.append(str(language))
            made = PairRow(
                str(row.get("id", f"{path.name}:{number}")),
                path.stem,
                str(row.get("kind", "pair")),
                query,
                languages[0],
                passage,
                languages[1],
                _strings(path, number, row, "negatives"),
                str(row.get("patient_id") or ""),
                str(row.get("note_id") or ""),
                _strings(path, number, row, "concepts"),
            )
            if not is_evaluated(made, held_out):
                found.append(made)
    return found


def write_pairs(rows: Iterable[PairRow], path: Path) -> None:
    """Write rows as JSON lines."""
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def is_evaluated(row: PairRow, held_out: HeldOut) -> bool:
    """Whether a row's query or passage is an evaluated text or term, or its query the label of an evaluated concept."""
    if row.kind == "label" and any(map(held_out.holds_concept, row.concepts)):
        return True
    sides = (row.query, row.passage)
    return any(map(held_out.holds_text, sides)) or held_out.holds_term(row.language, row.query)


def _string(path: Path, number: int, row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        what = "is empty" if value == "" or isinstance(value, str) else "is missing" if value is None else "is no text"
        raise SourceError(f"{path.name} line {number}: {key} {what}; fill it or drop the row")
    return value.strip()


def _strings(path: Path, number: int, row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = row.get(key, [])
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
        raise SourceError(f"{path.name} line {number}: {key} must be a list of texts")
    return tuple(value)
