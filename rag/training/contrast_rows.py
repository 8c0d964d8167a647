"""What contrastive tuning reads: rows of a query, its passage and passages that are not it, languages mixed.

A batch holds same-language and crossing rows alike. The hard negatives of a crossing row are of the query's own
language, so that the passage in the other language has to win against them.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexer.errors import ArgumentError
from indexer.text.language import identify
from rag.training.batches import Questions, Sampler
from rag.training.heldout import rows_if_there
from rag.training.pair_files import PairRow
from rag.training.settings import ContrastSettings
from rag.training.watch import model_encode

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

_SYMMETRIC = ("bitext", "terms", "translation")
_ROWS_A_KIND = 12_000
_POOL = 20_000
_LOOKED_AT = 50
_WORDINGS = 3


def contrast_rows(pairs: Path, seed: int) -> list[PairRow]:
    """Return the rows of a run's pairs, at most 12,000 a kind: parallel text, terms, questions, titles, mined pairs.

    Raises:
        ArgumentError: the folder holds no row.
    """
    chance = random.Random(f"{seed}/rows")  # noqa: S311 - no secret
    found: dict[str, list[PairRow]] = defaultdict(list)
    for rows in (_bitext(pairs, chance), _terms(pairs, chance), _questions(pairs, seed), _titles(pairs), _mined(pairs)):
        for row in rows:
            found[row.kind].append(row)
    kept = [row for kind in sorted(found) for row in _some(found[kind], chance)]
    if not kept:
        raise ArgumentError("pairs", "hold no row to train on; run the recipe's pairs stage over a folder with data")
    return list({(row.query, row.passage): row for row in kept}.values())


def contrast_dataset(
    rows: Sequence[PairRow], model: SentenceTransformer, settings: ContrastSettings, seed: int
) -> Dataset:
    """Return ``anchor``, ``positive`` and as many ``negative_N`` as asked for, or as rows bring.

    A row's own negatives come first (a flipped negation, a sibling's name), then mined ones; where these are too few, a
    passage of the query's language is drawn.
    """
    from datasets import Dataset

    width = max(settings.negatives, int(any(row.negatives for row in rows)))
    columns: dict[str, list[str]] = {
        "anchor": [row.query for row in rows],
        "positive": [row.passage for row in rows],
    }
    if width:
        mined = mine_negatives(rows, model, settings) if settings.negatives else [()] * len(rows)
        filled = [
            _filled([*row.negatives, *more], row, width, spare)
            for row, more, spare in zip(rows, mined, _spares(rows, seed), strict=True)
        ]
        columns |= {f"negative_{n + 1}": [negatives[n] for negatives in filled] for n in range(width)}
    return Dataset.from_dict(columns)


def mine_negatives(
    rows: Sequence[PairRow], model: SentenceTransformer, settings: ContrastSettings
) -> list[tuple[str, ...]]:
    """Return for each row the nearest texts of the query's language that are surely not its answer.

    Positive-aware: a text counts when it scores below ``negatives_margin`` times the positive. A text that shares a
    concept (or the parallel row) with the query never counts.
    """
    from sentence_transformers.util import semantic_search

    pools, meant = _pools(rows)
    encode = model_encode(model)
    found: list[tuple[str, ...]] = [()] * len(rows)
    for language, pool in pools.items():
        own = [number for number, row in enumerate(rows) if row.language == language]
        if not own:
            continue
        queries = encode([rows[number].query for number in own], "query")
        positives = encode([rows[number].passage for number in own], "passage")
        limits = settings.negatives_margin * (queries * positives).sum(1)
        hits = semantic_search(_tensor(queries), _tensor(encode(pool, "passage")), top_k=min(_LOOKED_AT, len(pool)))
        for number, limit, near in zip(own, limits, hits, strict=True):
            row = rows[number]
            keys = _keys(row)
            texts = [pool[int(hit["corpus_id"])] for hit in near if float(hit["score"]) < limit]
            right = [t for t in texts if t not in (row.query, row.passage) and keys.isdisjoint(meant[t])]
            found[number] = tuple(right[: settings.negatives])
    return found


def _tensor(rows: Any) -> Any:
    import torch

    return torch.from_numpy(rows)


def _pools(rows: Sequence[PairRow]) -> tuple[dict[str, list[str]], dict[str, set[str]]]:
    """Return the candidates of each language, and of each what it stands for."""
    pools: dict[str, dict[str, None]] = defaultdict(dict)
    meant: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        pools[row.passage_language][row.passage] = None
        meant[row.passage] |= _keys(row)
        if row.kind in _SYMMETRIC:
            pools[row.language][row.query] = None
            meant[row.query] |= _keys(row)
    return {language: list(texts)[:_POOL] for language, texts in sorted(pools.items())}, meant


def _keys(row: PairRow) -> set[str]:
    return {*row.concepts, row.id, *([f"note:{row.note}"] if row.note else [])}


def _spares(rows: Sequence[PairRow], seed: int) -> Iterator[list[str]]:
    """Yield for each row passages of the query's language drawn by chance."""
    chance = random.Random(f"{seed}/spare")  # noqa: S311 - no secret
    pools, _ = _pools(rows)
    every = [text for pool in pools.values() for text in pool]
    for row in rows:
        pool = pools.get(row.language, [])
        yield [chance.choice(pool if len(pool) > 2 else every) for _ in range(8)] + every[:3]


def _filled(negatives: list[str], row: PairRow, width: int, spare: list[str]) -> list[str]:
    usable = [text for text in [*negatives, *spare] if text not in (row.query, row.passage)] or [row.query[::-1]]
    distinct = list(dict.fromkeys(usable))
    return (distinct * width)[:width]


def _some(rows: list[PairRow], chance: random.Random) -> list[PairRow]:
    return rows if len(rows) <= _ROWS_A_KIND else chance.sample(rows, _ROWS_A_KIND)


def _bitext(pairs: Path, chance: random.Random) -> Iterator[PairRow]:
    for row in rows_if_there(pairs / "bitext.jsonl"):
        others = sorted(set(row["texts"]) - {"en"})
        first = chance.choice(others)
        rest = [language for language in others if language != first]
        second = chance.choice(rest) if rest and chance.random() < 0.2 else "en"
        one, other = (first, second) if chance.random() < 0.5 else (second, first)
        yield PairRow(row["id"], row["source"], "bitext", row["texts"][one], one, row["texts"][other], other)


def _terms(pairs: Path, chance: random.Random) -> Iterator[PairRow]:
    """Yield two names of a concept; the negative is a sibling's name in the query's language."""
    concepts = list(rows_if_there(pairs / "terms.jsonl"))
    children: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in concepts:
        for parent in row["parents"]:
            children[parent].append(row)
    for row in concepts:
        one, other = chance.sample(sorted(row["terms"]), 2)
        near = [near for parent in row["parents"] for near in children[parent]]
        siblings = [near["terms"][one] for near in near if near["id"] != row["id"] and one in near["terms"]]
        names, own = row["terms"], {name.casefold() for name in row["terms"][one]}
        far = [name for names in siblings for name in names if name.casefold() not in own]
        negatives = (chance.choice(far),) if far else ()
        query, passage = chance.choice(names[one]), chance.choice(names[other])
        yield PairRow(row["id"], row["source"], "terms", query, one, passage, other, negatives, concepts=(row["id"],))


def _questions(pairs: Path, seed: int) -> Iterator[PairRow]:
    """Yield questions as people word them, in many languages, with their English answers."""
    count = sum(1 for _ in rows_if_there(pairs / "questions.jsonl"))
    if not count:
        return
    sampler = Sampler(pairs, seed=seed)
    told = cache(identify)
    for step in range(min(_ROWS_A_KIND, _WORDINGS * count) // sampler.sizes.questions + 1):
        batch = sampler.draw("questions", step)
        assert isinstance(batch, Questions)
        for question, answer, topic in zip(batch.questions, batch.passages, batch.same, strict=True):
            language = told(question) or "en"
            yield PairRow(topic, "eval/medquad", "questions", question, language, answer, "en", concepts=(topic,))


def _titles(pairs: Path) -> Iterator[PairRow]:
    for row in rows_if_there(pairs / "titles.jsonl"):
        language = row["language"]
        yield PairRow(row["id"], row["source"], "titles", row["query"], language, row["title"], language)


def _mined(pairs: Path) -> Iterator[PairRow]:
    return (PairRow.from_json(row) for row in rows_if_there(pairs / "mined.jsonl"))
