"""What one training step sees: a batch of one kind, drawn from (seed, step) alone; a resumed run draws the same.

A batch of pairs may mix language pairs: neighbours of a row's own language are its hardest negatives.
"""

from __future__ import annotations

import random
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from rag.training.heldout import LANGUAGES, normalised, rows_if_there
from rag.training.pairs import terms_by_english

Row = dict[str, Any]
_RARE = {"zh": 3.0, "ja": 3.0, "ru": 3.0, "ro": 3.0, "en": 1.0, "it": 1.5, "nl": 1.5}
_TIMES = {
    "parallel/tico19": 4,
    "parallel/openmrs_ui": 2,
    "tasks/cardioccc": 3,
    "notes/codiesp": 2,
    "written/medicines": 3,
    "written/words": 3,
    "written/asked": 4,
}
_KEEP_SHARE = {"en": 0.4, "zh": 0.25, "ja": 0.07, "ru": 0.06, "es": 0.07, "fr": 0.07, "de": 0.05, "pt": 0.03}
_SENTENCE = regex.compile(r"(?<=[.!?。！？;；\n])\s*")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two sides that mean the same, the English text they stand for, and what tells true from false negatives."""

    left: list[str]
    right: list[str]
    english: list[str]
    same: list[str]
    prompts: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions (in any language), the English wording where there is one, and their passages."""

    questions: list[str]
    english: list[str]
    passages: list[str]
    same: list[str]


@dataclass(frozen=True, slots=True)
class Texts:
    """Consecutive pieces, each with one of its sentences as a query, and the texts that the teacher reads for them.

    Within one language the teacher reads the same; a query or a piece in another language stands for its English.
    """

    language: str
    queries: list[str]
    passages: list[str]
    taught_queries: list[str]
    taught_passages: list[str]


Batch = Pairs | Questions | Texts


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a batch of each kind is."""

    bitext_characters: int = 5000
    terms: int = 160
    statements: int = 40
    questions: int = 28
    titles: int = 64
    keep: int = 20
    crossing: int = 16
    sentences: int = 3
    siblings: float = 0.5
    prompts: tuple[str, str] = field(default=("query: ", "passage: "))


class Sampler:
    """Draws batches out of a folder that `pairs.build` wrote."""

    def __init__(self, folder: Path, sizes: Sizes | None = None, seed: int = 0) -> None:
        """Read the rows of every kind; pairs of an older version know fewer of them."""

        def often(name: str) -> list[Row]:
            return [row for row in rows_if_there(folder / name) for _ in range(_TIMES.get(row["source"], 1))]

        self.sizes = sizes or Sizes()
        self.seed = seed
        self._bitext = often("bitext.jsonl")
        self._bitext.sort(key=lambda row: (len(row["texts"]["en"]), row["id"]))
        self._terms = often("terms.jsonl")
        self._by_parent: dict[str, list[int]] = defaultdict(list)
        for number, row in enumerate(self._terms):
            for parent in row["parents"]:
                self._by_parent[parent].append(number)
        self._parents = [parent for parent, children in sorted(self._by_parent.items()) if len(children) > 1]
        self._named = terms_by_english(self._terms)
        self._questions: dict[str, list[Row]] = defaultdict(list)
        for row in rows_if_there(folder / "questions.jsonl"):
            self._questions[row["topic"]].append(row)
        times = {topic: _TIMES.get(rows[0]["source"], 1) for topic, rows in self._questions.items()}
        self._topics = [topic for topic in sorted(times) for _ in range(times[topic])]
        self._titles = list(rows_if_there(folder / "titles.jsonl"))
        self._keep = _pieces(rows_if_there(folder / "keep.jsonl"))
        self._documents: list[list[Mapping[str, str]]] = [row["sentences"] for row in often("documents.jsonl")]
        templates = tomllib.loads((Path(__file__).parent / "templates.toml").read_text(encoding="utf-8"))
        self._wording: Mapping[str, Mapping[str, str]] = templates["question"]
        self._statement: Mapping[str, Mapping[str, str]] = templates["statement"]
        self._opening: Mapping[str, Sequence[str]] = templates["opening"]
        self._closing: Mapping[str, Sequence[str]] = templates["closing"]

    def has(self, kind: str) -> bool:
        """Whether there are rows of a kind."""
        rows: dict[str, object] = {"bitext": self._bitext, "questions": self._topics, "titles": self._titles}
        rows |= {"keep": self._keep, "crossing": self._documents}
        return bool(rows.get(kind, self._terms))

    def draw(self, kind: str, step: int) -> Batch:
        """Return the batch of a step."""
        chance = random.Random(f"{self.seed}/{step}/{kind}")  # noqa: S311 - no secret
        draws: dict[str, Callable[[random.Random], Batch]] = {
            "bitext": self._draw_bitext,
            "terms": self._draw_terms,
            "statements": self._draw_statements,
            "questions": self._draw_questions,
            "titles": self._draw_titles,
            "keep": self._draw_keep,
            "crossing": self._draw_crossing,
        }
        return draws[kind](chance)

    def _draw_bitext(self, chance: random.Random) -> Pairs:
        # neighbours in length order make batches of like length: a batch of short ones is a large one
        at = chance.randrange(len(self._bitext))
        room = self.sizes.bitext_characters
        rows: list[Row] = []
        seen: set[str] = set()
        for row in self._bitext[at:] + self._bitext[:at]:
            if row["id"] in seen or chance.random() < 0.5:
                continue
            room -= len(row["texts"]["en"]) + 16
            if (room < 0 and len(rows) > 7) or len(rows) == 128:
                break
            seen.add(row["id"])
            rows.append(row)
        rows = rows or [self._bitext[at]]  # of a few rows, chance may pass all by
        left, right = zip(*(_two(row["texts"], chance) for row in rows), strict=True)
        english = [row["texts"]["en"] for row in rows]
        same = [normalised(text) for text in english]
        return Pairs(list(left), list(right), english, same, self._prompts(chance))

    def _concepts(self, count: int, chance: random.Random) -> list[Row]:
        chosen: dict[int, None] = {}
        for _ in range(count if self._parents else 0):  # bounded: a small terminology runs out of families
            if len(chosen) >= count * self.sizes.siblings:
                break
            children = self._by_parent[chance.choice(self._parents)]
            chosen.update(dict.fromkeys(chance.sample(children, min(4, len(children)))))
        while len(chosen) < min(count, len(self._terms)):
            chosen[chance.randrange(len(self._terms))] = None
        return [self._terms[number] for number in list(chosen)[:count]]

    def _draw_terms(self, chance: random.Random) -> Pairs:
        rows = self._concepts(self.sizes.terms, chance)
        sides = [_two({k: _one(v, chance) for k, v in row["terms"].items()}, chance) for row in rows]
        english = [row["terms"]["en"][0] for row in rows]
        left, right = zip(*sides, strict=True)
        return Pairs(list(left), list(right), english, [row["id"] for row in rows], self._prompts(chance))

    def _draw_statements(self, chance: random.Random) -> Pairs:
        left, right, english, same = [], [], [], []
        for row in self._concepts(self.sizes.statements, chance):
            terms = {key: _one(value, chance) for key, value in row["terms"].items()}
            kinds = ["present", "absent"] if chance.random() < 0.5 else chance.sample(sorted(self._statement["en"]), 2)
            for kind in kinds:
                texts = {key: self._statement[key][kind].format(x=term) for key, term in terms.items()}
                one, other = _two(texts, chance)
                left.append(one)
                right.append(other)
                english.append(texts["en"])
                same.append(f"{row['id']}/{kind}")
        return Pairs(left, right, english, same, self._prompts(chance))

    def _draw_questions(self, chance: random.Random) -> Questions:
        rows: list[Row] = []
        while len(rows) < self.sizes.questions:
            of_topic = self._questions[chance.choice(self._topics)]
            rows.extend(chance.sample(of_topic, min(2, len(of_topic))))
        rows = rows[: self.sizes.questions]
        questions = [self._worded(row, chance) for row in rows]
        same = [f"{row['topic']}/{row['kind']}" for row in rows]
        return Questions(questions, [row["question"] for row in rows], [row["answer"] for row in rows], same)

    def _worded(self, row: Row, chance: random.Random) -> str:
        """Return the question in its own English or in another language, the topic translated where that is known.

        A third of them are told as people write: what brings them, the question, thanks. A question that was written
        in many languages is taken in one of them as it stands.
        """
        if "questions" in row:
            asked: Mapping[str, str] = row["questions"]
            return asked[_language(sorted(asked), chance)]
        told = chance.random() < 0.35
        language, topic, question = "en", str(row["topic"]), str(row["question"])
        if chance.random() >= 0.35 and row["kind"] in self._wording["en"]:
            names = self._named.get(normalised(topic), {})
            languages = [key for key in LANGUAGES if key in names or chance.random() < 0.25]
            language = _language(languages or ["en"], chance)
            topic = _one(names[language], chance) if language in names else topic
            question = self._wording[language][row["kind"]].format(x=topic)
        if not told:
            return question
        parts = [chance.choice(self._opening[language]).format(x=topic), question]
        if chance.random() < 0.6:
            parts.append(chance.choice(self._closing[language]))
        return ("" if language in ("zh", "ja") else " ").join(parts)

    def _draw_titles(self, chance: random.Random) -> Questions:
        rows = chance.sample(self._titles, min(self.sizes.titles, len(self._titles)))
        return Questions([r["query"] for r in rows], [], [r["title"] for r in rows], [r["query"] for r in rows])

    def _draw_keep(self, chance: random.Random) -> Texts:
        languages = [key for key in _KEEP_SHARE if key in self._keep]
        language = chance.choices(languages, [_KEEP_SHARE[key] for key in languages])[0]
        stream = chance.choice(self._keep[language])
        # a piece is a few sentences, two of them about as long as a stored passage
        joined, count = chance.choice([(1, self.sizes.keep), (2, max(2, 2 * self.sizes.keep // 3))])
        at = chance.randrange(max(1, len(stream) - joined * count))
        texts = stream[at : at + joined * count]
        passages = list(dict.fromkeys(" ".join(texts[n : n + joined]) for n in range(0, len(texts), joined)))
        queries = [_clue(text, chance) for text in passages]
        return Texts(language, queries, passages, queries, passages)

    def _draw_crossing(self, chance: random.Random) -> Texts:
        width = self.sizes.sentences
        document = chance.choices(self._documents, [len(rows) for rows in self._documents])[0]
        starts = range(0, max(1, len(document) - width + 1), width)
        first = chance.randrange(max(1, len(starts) - self.sizes.crossing + 1))
        asked, spoken = (_language(sorted(set(document[0]) - {"en"}), chance) for _ in range(2))
        if chance.random() < 0.7:
            spoken = "en"
        queries, passages, english_queries, english_passages = [], [], [], []
        for start in starts[first : first + self.sizes.crossing]:
            rows = document[start : start + width]
            clue = chance.choice(rows)
            queries.append(clue.get(asked, clue["en"]))
            english_queries.append(clue["en"])
            passages.append(" ".join(row.get(spoken, row["en"]) for row in rows))
            english_passages.append(" ".join(row["en"] for row in rows))
        return Texts(f"{asked}-{spoken}", queries, passages, english_queries, english_passages)

    def _prompts(self, chance: random.Random) -> tuple[str, str]:
        query, passage = self.sizes.prompts
        return chance.choices([(query, query), (passage, passage), (query, passage)], [0.45, 0.2, 0.35])[0]


def _one(terms: Sequence[str], chance: random.Random) -> str:
    return terms[0] if chance.random() < 0.7 else chance.choice(terms)


def _clue(text: str, chance: random.Random) -> str:
    """Return one sentence of a piece, or its beginning: what somebody might search for to find it."""
    sentences = [part.strip() for part in _SENTENCE.split(text) if len(part.strip()) > 5]
    return (chance.choice(sentences) if sentences else text)[:120]


def _language(languages: Sequence[str], chance: random.Random) -> str:
    return chance.choices(languages, [_RARE.get(key, 1.0) for key in languages])[0]


def _two(texts: Mapping[str, str], chance: random.Random) -> tuple[str, str]:
    """Return (another language, English), or in a fifth of the draws two other languages."""
    others = sorted(set(texts) - {"en"})
    first = _language(others, chance)
    if len(others) > 1 and chance.random() < 0.2:
        second = _language([key for key in others if key != first], chance)
        return texts[first], texts[second]
    return texts[first], texts["en"]


def _pieces(rows: Iterable[Row]) -> dict[str, list[list[str]]]:
    """Return for each language its sources' texts cut into pieces of a few sentences, in order."""
    streams: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        size = 110 if row["language"] in ("zh", "ja") else 320
        piece = ""
        for sentence in _SENTENCE.split(row["text"]):
            if piece and len(piece) + len(sentence) > size:
                streams[row["language"], row["source"]].append(piece.strip())
                piece = ""
            piece = f"{piece} {sentence.strip()}" if size > 110 else piece + sentence.strip()
            piece = piece[: 2 * size]
        if piece.strip():
            streams[row["language"], row["source"]].append(piece.strip())
    found: dict[str, list[list[str]]] = defaultdict(list)
    for (language, _), stream in sorted(streams.items()):
        if len(stream) > 40:
            found[language].append(stream)
    return found
