"""Language mean correction: what a language adds to every passage vector is taken off again (SHIFT).

Of parallel pairs, the mean of ``other - English`` is the language's offset; `shift` takes it off passage vectors. It is
kept (``offsets.safetensors``, one ``(D,)`` row a language) only where it wins on pairs that it was not measured on: in
one pool of all languages, the share of a sentence's translations that are found first.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from indexer.errors import ArgumentError
from rag.training.devscore import Encode
from rag.training.heldout import read_rows
from rag.training.settings import CorrectSettings
from rag.training.student import Student
from rag.training.watch import student_encode

_FILE = "offsets.safetensors"
Floats = NDArray[np.float32]
Texts = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Correction:
    """Offsets by language, and the share of translations found first without and with them."""

    offsets: Mapping[str, Floats]
    off: float
    on: float


def correct(
    model: Path, pairs: Path, out: Path, settings: CorrectSettings, tell: Callable[[float, Mapping[str, Any]], None]
) -> Path:
    """Write the model, with its languages' offsets where they win; the figures go to ``log.jsonl`` beside it.

    Raises:
        ArgumentError: there is too little parallel text to measure on.
        SourceError: the pairs are not there or damaged.
    """
    rows = [row["texts"] for row in read_rows(pairs / "bitext.jsonl")]
    found = measure(student_encode(Student(model)), rows, settings.pairs)
    row = {"step": 1, "kind": "correct", "score": {"mixed pool off": found.off, "mixed pool on": found.on}}
    with (out.parent / "log.jsonl").open("w", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")
    tell(1.0, {"off": found.off, "on": found.on, "kept": found.on > found.off})
    shutil.copytree(model, out, dirs_exist_ok=True)
    (out / _FILE).unlink(missing_ok=True)
    if found.on > found.off:
        save_file({name: torch.from_numpy(value) for name, value in found.offsets.items()}, out / _FILE)
    return out


def measure(encode: Encode, rows: Sequence[Texts], pairs: int) -> Correction:
    """Return offsets of the first ``pairs`` rows of each language, and what they do on the rows behind.

    Args:
        encode: ``(texts, side)`` to ``(n, D)`` unit rows.
        rows: one meaning by language, English among them.
        pairs: rows a language to measure on, and again as many at most to judge by.

    Raises:
        ArgumentError: no language has rows for both.
    """
    fit: dict[str, list[tuple[str, str]]] = {}
    judged: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        for language, text in row.items():
            if language != "en":
                one = fit.setdefault(language, [])
                side = one if len(one) < pairs else judged.setdefault(language, [])
                if len(side) < pairs:
                    side.append((text, row["en"]))
    if not judged:
        raise ArgumentError("correct.pairs", f"is {pairs}, of which no language has twice as many")
    offsets = {}
    for language, found in sorted(fit.items()):
        other, english = (encode(list(texts), "passage") for texts in zip(*found, strict=True))
        offsets[language] = np.ascontiguousarray((other - english).mean(0), dtype=np.float32)
    off, on = _mixed_pool(encode, judged, offsets)
    return Correction(offsets, round(off, 4), round(on, 4))


def _mixed_pool(
    encode: Encode, judged: Mapping[str, Sequence[tuple[str, str]]], offsets: Mapping[str, Floats]
) -> tuple[float, float]:
    """Return how often a sentence's nearest other text is its translation, without and with the offsets taken off.

    The pool holds both sides of all pairs: what sits with its own language finds its neighbours first.
    """
    sides = [(language, other, english) for language, found in sorted(judged.items()) for other, english in found]
    languages = [language for language, _, _ in sides] + ["en"] * len(sides)
    texts = [other for _, other, _ in sides] + [english for _, _, english in sides]
    queries, passages = encode(texts, "query"), encode(texts, "passage")
    known: dict[str, int] = {}
    meaning = np.array([known.setdefault(english, len(known)) for _, _, english in sides] * 2)
    shares = []
    for pool in (passages, shift(passages, languages, offsets)):
        scores = queries @ pool.T
        np.fill_diagonal(scores, -np.inf)
        shares.append(float((meaning[scores.argmax(1)] == meaning).mean()))
    return shares[0], shares[1]


def read_offsets(model: Path) -> dict[str, Floats]:
    """Return the offsets of a corrected model; none where it has no file of them."""
    path = model / _FILE
    return {name: value.numpy() for name, value in load_file(path).items()} if path.is_file() else {}


def shift(rows: Floats, languages: Sequence[str], offsets: Mapping[str, Floats]) -> Floats:
    """Return unit rows ``(n, D)`` less the offset of each row's language; a language without one stays as it is."""
    moved = rows.copy()
    for number, language in enumerate(languages):
        if language in offsets:
            moved[number] -= offsets[language]
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    return (moved / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
