"""Documents whose sentences stand beside each other in two languages or more, in their order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import regex

from rag.training.heldout import HeldOut, is_held_out_case, read_rows

_SENTENCE = regex.compile(r"(?<=[.!?][\"')\]]?)\s+(?=[\p{Lu}¿¡\"(\d])|\n+")
_SHORTEST = 8
Row = dict[str, Any]


def document_rows(bitext: Iterable[Row], data: Path, held_out: HeldOut) -> Iterator[Row]:
    """Yield ``{"id", "source", "sentences": [{language: text}]}`` of documents with more than eight sentences.

    TICO-19 gives its sentences in ``bitext`` rows; of a case in several languages only those whose languages split
    into equally many sentences of like lengths are taken, so that no sentence stands beside another's translation.
    """
    found: dict[str, dict[int, dict[str, str]]] = defaultdict(dict)
    for row in bitext:
        if row["source"] == "parallel/tico19":
            _, document, number = str(row["id"]).split(":")
            found[document][int(number)] = row["texts"]
    for document, numbered in sorted(found.items()):
        yield from _document(f"tico19:{document}", "parallel/tico19", [texts for _, texts in sorted(numbered.items())])
    spanish = {row["id"]: row["text"] for row in read_rows(data / "notes" / "codiesp_es.jsonl.gz")}
    for row in read_rows(data / "notes" / "codiesp_en.jsonl.gz"):
        text = spanish.get(row["id"])
        if text is not None and not is_held_out_case(row["id"]) and not held_out.holds_case(text):
            yield from _document(row["id"], "notes/codiesp", _beside({"en": row["text"], "es": text}))
    cases: dict[str, dict[str, str]] = defaultdict(dict)
    for language in ("en", "es", "it"):
        for row in read_rows(data / "tasks" / "cardioccc" / f"test_{language}.jsonl.gz"):
            cases[row["pair_id"]][language] = row["text"]
    for pair_id, texts in cases.items():
        yield from _document(pair_id, "tasks/cardioccc", _beside(texts))


def _document(identity: str, source: str, sentences: list[dict[str, str]]) -> Iterator[Row]:
    if len(sentences) > _SHORTEST:
        yield {"id": identity, "source": source, "sentences": sentences}


def _beside(texts: Mapping[str, str]) -> list[dict[str, str]]:
    """Return a text's sentences beside English's, without the languages that split differently."""
    split = {
        language: [part.strip() for part in _SENTENCE.split(text) if part.strip()] for language, text in texts.items()
    }
    english = split.get("en", [])
    beside = {
        language: parts
        for language, parts in split.items()
        if len(parts) == len(english)
        and all(0.5 < (len(part) + 15) / (len(of) + 15) < 2.0 for part, of in zip(parts, english, strict=True))
    }
    if len(beside) < 2:
        return []
    return [{language: parts[at] for language, parts in beside.items()} for at in range(len(english))]
