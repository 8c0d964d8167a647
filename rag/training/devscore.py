"""Quick scores during and after tuning: the rows by which a compact retriever is judged, per query.

Small on purpose: a pool is always whole, queries are drawn by seed. The proof with intervals and reports is `eval`'s.
An encoder comes in as one callable ``(texts, side) -> (n, dim)`` unit rows, side ``query`` or ``passage``.
"""

from __future__ import annotations

import gzip
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rag.training.bounds import SCORED
from rag.training.heldout import bucket, is_held_out_case, is_held_out_concept, is_held_out_tico, normalised, read_rows
from rag.training.pair_files import PairRow

Floats = NDArray[np.float32]
Encode = Callable[[Sequence[str], str], Floats]
_HPO = ("zh", "ja", "de", "it", "pt", "fr", "nl", "es")
_ICD = ("zh", "ja", "ru", "fr", "de", "es", "pt")
_TATOEBA = ("de", "es", "fr", "it", "ja", "nl", "pt", "ro", "ru", "zh")
_TICO = ("en", "es", "ru", "zh", "fr", "pt")
_FIRST = 10
_LESS_IS_BETTER = "same-language"
_OWN_POOL = 5000


@dataclass(frozen=True, slots=True)
class RowScore:
    """One row: a measure with its value for every query, in a fixed order."""

    name: str
    measure: str
    values: Floats

    @property
    def mean(self) -> float:
        """The row's figure."""
        return float(self.values.mean()) if len(self.values) else float("nan")


def score_rows(encode: Encode, data: Path, limit: int = 500, only: Sequence[str] = ()) -> Iterator[RowScore]:
    """Yield the rows whose set begins with one of ``only`` (all where empty), at most ``limit`` queries a row."""
    sets: dict[str, Callable[[], Iterator[RowScore]]] = {
        "liveqa": lambda: _health(encode, data, "liveqa", limit),
        "medicationqa": lambda: _health(encode, data, "medicationqa", limit),
        "hpo": lambda: _hpo(encode, data, limit),
        "icd": lambda: _icd(encode, data, limit),
        "igakuqa": lambda: _igakuqa(encode, data),
        "codiesp": lambda: _codiesp(encode, data, limit),
        "xquad": lambda: _xquad(encode, data, limit),
        "cmedir": lambda: _cmedir(encode, data, limit),
        "tico": lambda: _mixed(encode, data, limit),
        "tatoeba": lambda: _tatoeba(encode, data, limit),
    }
    for name in SCORED:
        if not only or name.startswith(tuple(only)):
            yield from sets[name]()


def dev_scores(encode: Encode, data: Path, pairs: Path, rows: Sequence[str], limit: int) -> dict[str, float]:
    """Return the figures by which a run is watched: rows of the data folder, and the run's own held-out pairs.

    Args:
        encode: the model as it is.
        data: the data folder; read only for ``rows``.
        pairs: the run's pairs; ``dev.jsonl`` of them where it is there.
        rows: beginnings of the names of `score_rows`; none: own pairs alone.
        limit: queries a row.
    """
    found = list(score_rows(encode, data, limit, rows)) if rows else []
    own = pairs / "dev.jsonl"
    if own.is_file():
        found += score_pairs(encode, [PairRow.from_json(row) for row in read_rows(own)], limit)
    return {row.name: row.mean for row in found if len(row.values)}


def score_pairs(encode: Encode, rows: Sequence[PairRow], limit: int) -> Iterator[RowScore]:
    """Yield each kind of held-out pairs, same-language and crossing, with all their passages as one pool."""
    pool = list(dict.fromkeys([text for row in rows for text in (row.passage, *row.negatives)]))[:_OWN_POOL]
    if not pool:
        return
    column = {text: number for number, text in enumerate(pool)}
    right: dict[str, set[int]] = defaultdict(set)  # one query (a code's label) may stand for several passages
    kinds: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.passage in column:
            right[row.query].add(column[row.passage])
            crossing = " crossing" if row.language != row.passage_language else ""
            kinds[f"own {row.kind}{crossing}"].append(row.query)
    passages = encode(pool, "passage")
    for kind, queries in sorted(kinds.items()):
        asked = list(dict.fromkeys(queries))
        asked = [asked[number] for number in _drawn(len(asked), limit)]
        scores = encode(asked, "query") @ passages.T
        yield RowScore(kind, "MRR@10", _first_relevant(scores, [right[query] for query in asked]))


def mean_score(scores: Mapping[str, float]) -> float:
    """Return the mean of the rows of which more is better; not a number where there is none."""
    values = [value for name, value in scores.items() if _LESS_IS_BETTER not in name]
    return float(np.mean(values)) if values else float("nan")


def _first_relevant(scores: Floats, relevant: Sequence[set[int]]) -> Floats:
    """Return the reciprocal rank of the first relevant column of each row, 0 beyond the first ten."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :_FIRST]
    found = np.zeros(len(scores), dtype=np.float32)
    for row, columns in enumerate(top):
        for rank, column in enumerate(columns, 1):
            if int(column) in relevant[row]:
                found[row] = 1.0 / rank
                break
    return found


def _hit(scores: Floats, right: Sequence[set[int]]) -> Floats:
    best = scores.argmax(1)
    return np.array([float(int(column) in right[row]) for row, column in enumerate(best)], dtype=np.float32)


def _drawn(count: int, limit: int) -> list[int]:
    return sorted(random.Random(0).sample(range(count), min(count, limit)))  # noqa: S311 - no secret


def _judged(folder: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    with gzip.open(folder / "qrels.tsv.gz", "rt", encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            query, document, grade = line.split("\t")
            found[query][document] = int(grade)
    return found


def _retrieval(
    encode: Encode, folder: Path, pool: str, languages: Sequence[str], name: str, limit: int
) -> Iterator[RowScore]:
    judged = _judged(folder)
    documents = [row for row in read_rows(folder / "corpus.jsonl.gz") if row["language"] == pool]
    column = {row["_id"]: number for number, row in enumerate(documents)}
    passages = encode([" ".join(filter(None, (row.get("title"), row["text"]))) for row in documents], "passage")
    queries = list(read_rows(folder / "queries.jsonl.gz"))
    for language in languages:
        own = [row for row in queries if row["language"] == language]
        own = [own[number] for number in _drawn(len(own), limit)]
        relevant = [{column[d] for d, grade in judged[row["_id"]].items() if grade > 0 and d in column} for row in own]
        scores = encode([row["text"] for row in own], "query") @ passages.T
        yield RowScore(f"{name} {language}->{pool}", "MRR@10", _first_relevant(scores, relevant))


def _health(encode: Encode, data: Path, name: str, limit: int) -> Iterator[RowScore]:
    yield from _retrieval(encode, data / "eval" / f"xlinghealth_{name}", "en", ("en", "es", "zh"), name, limit)


def _xquad(encode: Encode, data: Path, limit: int) -> Iterator[RowScore]:
    languages = ("en", "de", "es", "ro", "ru", "zh")
    yield from _retrieval(encode, data / "eval" / "xquad", "en", languages, "xquad", limit)


def _cmedir(encode: Encode, data: Path, limit: int) -> Iterator[RowScore]:
    yield from _retrieval(encode, data / "eval" / "cmedir_dev", "zh", ("zh",), "cmedir", limit)


def _labels(
    encode: Encode, name: str, english: dict[str, str], others: dict[str, dict[str, str]], limit: int
) -> Iterator[RowScore]:
    """Yield label -> English label; concepts with one and the same English label are all right."""
    concepts = sorted(english)
    same: dict[str, set[int]] = defaultdict(set)
    for number, concept in enumerate(concepts):
        same[normalised(english[concept])].add(number)
    pool = encode([english[concept] for concept in concepts], "query")
    for language, labels in others.items():
        own = sorted(set(labels) & set(english))
        own = [own[number] for number in _drawn(len(own), limit)]
        scores = encode([labels[concept] for concept in own], "query") @ pool.T
        yield RowScore(f"{name} {language}->en", "R@1", _hit(scores, [same[normalised(english[c])] for c in own]))


def _hpo(encode: Encode, data: Path, limit: int) -> Iterator[RowScore]:
    labels: dict[str, dict[str, str]] = {language: {} for language in ("en", *_HPO)}
    for row in read_rows(data / "terms" / "hpo.jsonl.gz"):
        if row["kind"] == "label" and is_held_out_concept(row["concept"]) and row["language"] in labels:
            labels[row["language"]].setdefault(row["concept"], row["term"])
    yield from _labels(encode, "hpo", labels.pop("en"), labels, limit)


def _icd(encode: Encode, data: Path, limit: int) -> Iterator[RowScore]:
    def first_labels(name: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for row in read_rows(data / "terms" / f"{name}.jsonl.gz"):
            if row["kind"] == "label" or name == "icd10_fr":  # of French there are index entries alone
                found.setdefault(row["concept"], row["term"])
        return found

    english = first_labels("icd10_en")
    others = {language: first_labels(f"icd10_{language}") for language in _ICD}
    # a category that Chinese labels is always in the pool: there are few of them
    chosen = sorted(english, key=lambda concept: (concept not in others["zh"], bucket(concept, 1 << 30)))[:6000]
    yield from _labels(encode, "icd", {concept: english[concept] for concept in chosen}, others, limit)


def _igakuqa(encode: Encode, data: Path) -> Iterator[RowScore]:
    folder = data / "eval" / "parallel_igakuqa2021"
    english = {row["_id"].removesuffix("-en"): row["text"] for row in read_rows(folder / "corpus.jsonl.gz")}
    ids = sorted(english)
    japanese = {row["_id"].removesuffix("-ja"): row["text"] for row in read_rows(folder / "queries.jsonl.gz")}
    scores = encode([japanese[key] for key in ids], "query") @ encode([english[key] for key in ids], "query").T
    yield RowScore("igakuqa ja->en", "R@1", _hit(scores, [{number} for number in range(len(ids))]))


def _codiesp(encode: Encode, data: Path, limit: int) -> Iterator[RowScore]:
    texts = {
        language: {
            row["id"]: row["text"]
            for row in read_rows(data / "notes" / f"codiesp_{language}.jsonl.gz")
            if is_held_out_case(row["id"])
        }
        for language in ("es", "en")
    }
    ids = sorted(set(texts["es"]) & set(texts["en"]))
    ids = [ids[number] for number in _drawn(len(ids), limit)]
    spanish = encode([texts["es"][key] for key in ids], "query")
    english = encode([texts["en"][key] for key in ids], "query")
    own = [{number} for number in range(len(ids))]
    yield RowScore("codiesp es->en", "R@1", _hit(spanish @ english.T, own))
    yield RowScore("codiesp en->es", "R@1", _hit(english @ spanish.T, own))


def _mixed(encode: Encode, data: Path, limit: int) -> Iterator[RowScore]:
    """Yield, on one pool of six languages, the translations found first and the unrelated texts of the own language."""
    rows = [
        row
        for row in read_rows(data / "parallel" / "tico19.jsonl.gz")
        if is_held_out_tico(row["id"]) and all(row.get(language) for language in _TICO)
    ]
    rows = [rows[number] for number in _drawn(len(rows), limit)]
    vectors = np.stack([encode([row[language] for row in rows], "query") for language in _TICO])  # (L, n, D)
    pool = vectors.reshape(-1, vectors.shape[-1])  # language-major
    count, others = len(rows), len(_TICO) - 1
    for number, language in enumerate(_TICO):
        scores = vectors[number] @ pool.T
        itself = number * count + np.arange(count)
        scores[np.arange(count), itself] = -np.inf
        first = np.argsort(-scores, axis=1, kind="stable")[:, :others]  # (n, others)
        found = (first % count == np.arange(count)[:, None]).mean(1)
        unrelated = ((first // count == number) & (first % count != np.arange(count)[:, None])).mean(1)
        yield RowScore(f"tico mixed {language}", f"found@{others}", found.astype(np.float32))
        yield RowScore(f"tico same-language {language}", f"share@{others}", unrelated.astype(np.float32))


def _tatoeba(encode: Encode, data: Path, limit: int) -> Iterator[RowScore]:
    for language in _TATOEBA:
        rows = list(read_rows(data / "parallel" / f"tatoeba_{language}.jsonl.gz"))
        pool = encode([row["en"] for row in rows], "query")
        drawn = _drawn(len(rows), limit)
        scores = encode([rows[number][language] for number in drawn], "query") @ pool.T
        yield RowScore(f"tatoeba {language}->en", "R@1", _hit(scores, [{number} for number in drawn]))
