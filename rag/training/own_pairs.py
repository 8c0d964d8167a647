"""Training rows out of a user's own files, beside or without the public sources: ``[[stage]] kind = "pairs"``."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from indexer.errors import ArgumentError
from rag.training.heldout import HeldOut, normalised
from rag.training.mining import mine_notes
from rag.training.pair_files import (
    Labels,
    PairRow,
    read_labels,
    read_pairs,
    read_parallel,
    translation_rows,
    write_pairs,
)
from rag.training.pairs import build
from rag.training.settings import PairsSettings
from rag.training.splits import Split, split

_PUBLIC = ("bitext", "terms", "questions", "titles", "keep", "documents")
Counts = dict[str, dict[str, int]]


def build_pairs(data: Path, out: Path, settings: PairsSettings, seed: int) -> Counts:
    """Write a run's pairs and return rows by kind and source; public ones, own ones, or both, as the settings say.

    Own rows go to ``mined.jsonl``, those that judge to ``dev.jsonl``, records that are no notes to ``skipped.jsonl``.
    Own parallel text and labels with an English side also go where `align` and `synonyms` read.

    Raises:
        SourceError: a file is not there, or a row of it is wrong; the message names file and line.
        ArgumentError: own files give no pair.
    """
    out.mkdir(parents=True, exist_ok=True)
    own = settings.notes or settings.labels or settings.parallel or settings.pairs
    if settings.public or not own:
        counts = build(data, out)
    else:
        counts = {}
        for kind in _PUBLIC:
            (out / f"{kind}.jsonl").write_text("", encoding="utf-8")
    for name in ("mined", "dev", "skipped"):
        (out / f"{name}.jsonl").unlink(missing_ok=True)
    if own:
        for kind, found in _build_own(data, out, settings, seed).items():
            counts[kind] = {**counts.get(kind, {}), **found}
    (out / "manifest.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    return counts


def _build_own(data: Path, out: Path, settings: PairsSettings, seed: int) -> Counts:
    held_out = HeldOut(data)
    labels = read_labels([data / name for name in settings.labels], held_out)
    parallel = read_parallel([data / name for name in settings.parallel], held_out)
    rows = read_pairs([data / name for name in settings.pairs], held_out)
    mined = mine_notes([data / name for name in settings.notes], labels, held_out, seed)
    if mined.skipped:
        with (out / "skipped.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(asdict(error)) + "\n" for error in mined.skipped)
    rows += mined.rows
    rows += translation_rows(parallel, seed)
    if not rows and not labels:
        skipped = f"; {len(mined.skipped)} records were skipped, see skipped.jsonl" if mined.skipped else ""
        raise ArgumentError("pairs", f"give no pair: {mined.notes} notes were read{skipped}")
    divided = split(rows, settings.dev, seed)
    shared = _share_with_alignment(out, parallel, labels, divided)
    train = [row for row in divided.train if _translated(row) not in shared]
    write_pairs(train, out / "mined.jsonl")
    write_pairs(divided.dev, out / "dev.jsonl")
    counts: Counts = {
        "mined": dict(Counter(f"own {row.kind}" for row in train)),
        "dev": dict(Counter(f"own {row.kind}" for row in divided.dev)),
        "bitext": {"own parallel": len(shared)} if shared else {},
    }
    return {kind: found for kind, found in counts.items() if found}


def _share_with_alignment(
    out: Path, parallel: list[dict[str, Any]], labels: Labels, divided: Split
) -> set[tuple[str, ...]]:
    """Add own parallel text and labels to the rows of alignment and return which text that is."""
    judged = {concept for row in divided.dev for concept in row.concepts}
    judged_texts = {normalised(text) for row in divided.dev for text in (row.query, row.passage, *row.negatives)}
    training = {key for row in divided.train if (key := _translated(row))}
    shared: set[tuple[str, ...]] = set()
    with (out / "bitext.jsonl").open("a", encoding="utf-8") as stream:
        for row in parallel:
            key = (row["source"], row["id"], row["document"])
            texts = row["texts"]  # the pair that was divided holds two of its languages, here are all of them
            if key in training and "en" in texts and judged_texts.isdisjoint(map(normalised, texts.values())):
                shared.add(key)
                kept = {key: row[key] for key in ("id", "source", "texts")}
                stream.write(json.dumps(kept, ensure_ascii=False) + "\n")
    with (out / "terms.jsonl").open("a", encoding="utf-8") as stream:
        for concept, terms in labels.items():
            if concept not in judged and "en" in terms and len(terms) > 1:
                made = {"id": concept, "source": "own labels", "terms": terms, "parents": []}
                stream.write(json.dumps(made, ensure_ascii=False) + "\n")
    return shared


def _translated(row: PairRow) -> tuple[str, ...]:
    """Return what a pair of parallel text is told by: ids may recur in other files, and in other documents."""
    return (row.source, row.id, row.note) if row.kind == "translation" else ()
