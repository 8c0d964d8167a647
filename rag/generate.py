"""Who writes the answer? The generator port, and its offline oracle: the best sentences of the notes, as they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ArgumentError
from rag.cite import Statement
from rag.context import ContextPassage
from rag.crossing import crosses
from rag.figures import only_dated
from rag.phrases import parallel_lines, spoken
from rag.support import Candidate, Meaning, parts_of, supported

if TYPE_CHECKING:
    from indexer.encoders.encoder import Encoder

EXTRACTIVE = "extractive"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a generator is asked: the question, the language to answer in, and the passages, best first."""

    question: str
    language: str
    passages: tuple[ContextPassage, ...]


class Generator(Protocol):
    """Writes statements that rest on passages. Thread safe.

    A draft is not trusted: callers pass it through `rag.cite.cite`, which drops statements without a valid passage
    number. No statements means that the passages do not answer; so does a prompt without passages, which never reaches
    a model. The prompt is not changed. Callers may not rely on the same draft twice, except from the extractive one.

    Implementations raise ``GeneratorError`` when they cannot write, with no text of notes or question in it.
    """

    @property
    def name(self) -> str:
        """The name that `load_generator` takes."""
        ...

    def generate(self, prompt: Prompt) -> tuple[Statement, ...]:
        """Return statements in reading order, each with the numbers of the passages that it rests on."""
        ...


class ExtractiveGenerator:
    """Quotes the sentences that answer best, in whatever language they are written. Offline and deterministic."""

    def __init__(self, encoder: Encoder | None = None, *, most: int = 3) -> None:
        """Compare sentences with the question by this encoder and by words, and quote at most so many."""
        self._encoder = encoder
        self._most = most
        self._lines: dict[str, NDArray[np.float32]] = {}

    @property
    def name(self) -> str:
        """The name that `load_generator` takes."""
        return EXTRACTIVE

    def generate(self, prompt: Prompt) -> tuple[Statement, ...]:
        """Return the best sentences that support an answer; none where nothing does."""
        candidates = _candidates(prompt.passages)
        if not candidates:
            return ()
        meaning = self._meaning(prompt, candidates)
        chosen = supported(prompt.question, prompt.language, candidates, meaning)[: self._most]
        return tuple(Statement(candidate.text, (candidate.passage.n,)) for candidate in chosen)

    def _meaning(self, prompt: Prompt, candidates: Sequence[Candidate]) -> Meaning | None:
        """Return how near the candidates are to the question, where the encoder can tell that across languages."""
        if self._encoder is None or not crosses(self._encoder):
            return None
        query = self._encoder.encode_queries([prompt.question])[0]
        parts = [(at, part) for at, candidate in enumerate(candidates) for part in parts_of(candidate.text)]
        texts = [candidate.text for candidate in candidates]
        similar = self._encoder.encode_passages([*texts, *(part for _, part in parts)]) @ query
        near, of_parts = np.split(similar, [len(candidates)])
        np.maximum.at(near, [at for at, _ in parts], of_parts)
        present = sorted({spoken(candidate.passage.language) for candidate in candidates})
        unrelated = {language: self._unrelated(self._encoder, language) @ query for language in present}
        return Meaning(near, unrelated)

    def _unrelated(self, encoder: Encoder, language: str) -> NDArray[np.float32]:
        """Return vectors of passages that answer no question about a patient."""
        if language not in self._lines:
            self._lines[language] = encoder.encode_passages(parallel_lines(language))
        return self._lines[language]


def load_generator(
    name: str,
    *,
    encoder: Encoder | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    timeout_s: float = 60.0,
) -> Generator:
    """Return the generator of a name: ``extractive``, or ``provider:model`` for a LangChain chat model.

    Raises:
        ArgumentError: the name is neither.
        MissingExtraError: the provider's package is not installed.
        GeneratorError: the model cannot be set up, for want of a key for example.
    """
    if name == EXTRACTIVE:
        return ExtractiveGenerator(encoder)
    provider, _, model = name.partition(":")
    if not provider or not model:
        raise ArgumentError("generator", "must be 'extractive' or 'provider:model', as in 'openai:gpt-4o-mini'")
    from rag.langchain import LangChainGenerator  # heavy: only where a model is asked for

    return LangChainGenerator.load(provider, model, base_url=base_url, api_key=api_key, timeout_s=timeout_s)


def _candidates(passages: Sequence[ContextPassage]) -> list[Candidate]:
    """Return the distinct sentences of the passages, in order: of equal ones the first."""
    found: dict[str, Candidate] = {}
    for passage in passages:
        for span in passage.sentences():
            text = passage.quote(span)
            if _says_something(text):
                found.setdefault(" ".join(text.split()).casefold(), Candidate(passage, text))
    return list(found.values())


def _says_something(text: str) -> bool:
    """Return whether a sentence is more than a title: it has figures, small letters, or a script without small ones.

    The date of a title is no figure: "RECONCILIATION - CORRECTED 14 DEC 2022".
    """
    letters = [character for character in text if character.isalpha()]
    titled = bool(letters) and all(character.isupper() for character in letters)
    if any(character.isdigit() for character in text):
        return not (titled and only_dated(text))
    return bool(letters) and not titled
