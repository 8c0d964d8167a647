"""Chunks: nothing lost, nothing twice, never over the budget, whole sentences of one section."""

import re
from collections.abc import Sequence

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexer.errors import ArgumentError
from indexer.records import Chunk
from indexer.text.chunks import DEFAULT_CHUNK_TOKENS, TokenSpans, split_chunks
from indexer.text.rules import SUPPORTED


def _by(pattern: str) -> TokenSpans:
    compiled = re.compile(pattern)

    def token_spans(texts: Sequence[str]) -> list[NDArray[np.int64]]:
        return [
            np.array([match.span() for match in compiled.finditer(text)], dtype=np.int64).reshape(-1, 2)
            for text in texts
        ]

    return token_spans


WORDS = _by(r"\w+|[^\w\s]")
LETTERS = _by(r"\S")


def grows_alone(texts: Sequence[str]) -> list[NDArray[np.int64]]:
    """Tokens of at most three characters counted from the text's start: a passage alone may hold more than inside."""
    return _by(r"(?s).{1,3}")(texts)


TOKENIZERS = {"words": WORDS, "letters": LETTERS, "grows": grows_alone}


def _chunks(text: str, *, language: str | None = None, tokens=WORDS, max_tokens: int = 32) -> list[Chunk]:
    return split_chunks(text, language=language, token_spans=tokens, max_tokens=max_tokens)


def _texts(text: str, **kwargs) -> list[str]:
    return [text[chunk.start : chunk.end] for chunk in _chunks(text, **kwargs)]


def _assert_law(text: str, chunks: list[Chunk], tokens, max_tokens: int) -> None:
    at = 0
    for n, chunk in enumerate(chunks):
        assert chunk.n == n
        assert at <= chunk.start < chunk.end <= len(text)
        assert not text[at : chunk.start].strip()
        passage = text[chunk.start : chunk.end]
        assert passage == passage.strip()
        assert len(tokens([passage])[0]) <= max_tokens
        at = chunk.end
    assert not text[at:].strip()


FRAGMENTS = st.sampled_from(
    [
        *(
            "Plan:",
            "HISTORY",
            "既往史：",
            "【主訴】",
            "Анамнез: ",
            "Dr. ",
            "2.5 mg ",
            ". ",
            "。",
            "! ",
            ", ",
            "、",
            "1. ",
            "- ",
        ),
        *("\n", "\r\n", "\r", "\n\n", "\t", " ", "\u3000", "\u2028", "\ufeff", "\x1c"),
        *(
            "e\u0301",
            "\u0301\u0302",
            "👩\u200d⚕️",
            "🇪🇸",
            "\U00020000",
            "한",
            "각",
            "नि",
            "word ",
            "длинное ",
            "病院",
            "x" * 40,
        ),
    ]
)


@settings(deadline=None)  # the first text loads the models
@given(
    text=st.one_of(st.text(max_size=120), st.lists(FRAGMENTS, max_size=40).map("".join)),
    language=st.sampled_from([None, "eu", *SUPPORTED]),
    tokenizer=st.sampled_from(sorted(TOKENIZERS)),
    max_tokens=st.integers(1, 20),
)
def test_every_character_lies_in_exactly_one_chunk_within_the_budget(
    text: str, language: str | None, tokenizer: str, max_tokens: int
) -> None:
    tokens = TOKENIZERS[tokenizer]
    chunks = _chunks(text, language=language, tokens=tokens, max_tokens=max_tokens)
    _assert_law(text, chunks, tokens, max_tokens)
    if language is not None:
        assert {chunk.language for chunk in chunks} <= {language}


@settings(deadline=None)  # the first text loads the models
@given(
    st.lists(
        st.sampled_from(["e\u0301", "👩\u200d⚕️", "🇪🇸", "\U00020000", "각", "नि", "a", "病"]), min_size=20, max_size=60
    )
)
def test_an_over_long_sentence_is_cut_between_graphemes(parts: list[str]) -> None:
    text = "".join(parts)
    graphemes = {match.end() for match in regex.finditer(r"\X", text)}
    chunks = _chunks(text, language="en", tokens=LETTERS, max_tokens=8)
    assert len(chunks) > 1
    assert all(chunk.end in graphemes for chunk in chunks)


def test_a_grapheme_over_the_budget_is_cut_rather_than_sent_over_it() -> None:
    text = "a" + "\u0301" * 30
    chunks = _chunks(text, language="en", tokens=LETTERS, max_tokens=8)
    _assert_law(text, chunks, LETTERS, 8)


def test_a_long_real_note_keeps_the_law() -> None:
    text = "\ufeffHISTORY\r\nSeen by Dr. Li. Takes 2.5 mg b.i.d. and feels well, without pain.\r\n" * 40
    chunks = _chunks(text, max_tokens=DEFAULT_CHUNK_TOKENS)
    _assert_law(text, chunks, WORDS, DEFAULT_CHUNK_TOKENS)
    assert {chunk.section for chunk in chunks} == {"history_of_present_illness"}
    assert {chunk.language for chunk in chunks} == {"en"}


def test_chunks_are_whole_sentences_of_even_size() -> None:
    text = " ".join(f"Sentence number {n} is here." for n in range(12))
    passages = _texts(text, language="en", max_tokens=30)
    assert len(passages) == 3
    assert all(passage.endswith("here.") and passage.startswith("Sentence") for passage in passages)
    assert {passage.count("here.") for passage in passages} == {4}


def test_a_chunk_belongs_to_one_section_and_begins_with_its_header() -> None:
    text = "Seen today.\n\nALLERGIES: penicillin.\nPLAN:\nRest. Review in a week.\n"
    chunks = _chunks(text, language="en")
    assert [(chunk.section, chunk.section_title, text[chunk.start : chunk.end]) for chunk in chunks] == [
        (None, None, "Seen today."),
        ("allergies", "ALLERGIES", "ALLERGIES: penicillin."),
        ("plan", "PLAN", "PLAN:\nRest. Review in a week."),
    ]


def test_a_header_with_nothing_under_it_goes_with_the_next_section() -> None:
    text = "OBJECTIVE:\n\nVITALS:\nBP 120/80\n"
    assert [(chunk.section, text[chunk.start : chunk.end]) for chunk in _chunks(text, language="en")] == [
        ("vital_signs", "OBJECTIVE:\n\nVITALS:\nBP 120/80"),
    ]


def test_a_bare_header_at_the_end_is_kept() -> None:
    assert _texts("Well.\nPLAN:\n", language="en") == ["Well.", "PLAN:"]


def test_an_over_long_sentence_is_cut_at_clauses_before_blanks() -> None:
    text = "pain in the left arm, " * 6 + "no fever"
    passages = _texts(text, language="en", max_tokens=16)
    assert all(passage.endswith((",", "fever")) for passage in passages)
    words = "word " * 50
    assert all(re.fullmatch(r"(word ?)+", passage) for passage in _texts(words, language="en", max_tokens=16))


def test_a_given_language_holds_for_every_chunk() -> None:
    text = "The patient was admitted with chest pain and she was given aspirin at once.\n" * 6
    assert {chunk.language for chunk in _chunks(text, language="es")} == {"es"}


def test_a_passage_surely_in_another_language_has_its_own() -> None:
    spanish = "Paciente de 65 años que acude por dolor torácico. Niega fiebre y toma aspirina todos los días. "
    english = "The patient was seen in the clinic of the hospital and she did not have any fever at that time. "
    text = f"ANTECEDENTES\n{spanish * 4}\nCONCLUSION\n{english * 2}\nALERGIAS\nPenicilina 500 mg\n"
    found = {(chunk.section, chunk.language) for chunk in _chunks(text, max_tokens=64)}
    assert found == {("past_medical_history", "es"), ("impression", "en"), ("allergies", "es")}


def test_values_alone_have_no_language() -> None:
    assert [chunk.language for chunk in _chunks("BP 120/80 HR 72")] == [None]


@pytest.mark.parametrize("text", ["", "  \n\t\r\n ", "\u3000\u2028"])
def test_white_space_alone_gives_no_chunk(text: str) -> None:
    assert _chunks(text) == []


@pytest.mark.parametrize("max_tokens", [0, -1])
def test_a_budget_below_one_is_refused(max_tokens: int) -> None:
    with pytest.raises(ArgumentError, match="max_tokens must be at least 1"):
        _chunks("text", max_tokens=max_tokens)


def test_a_budget_below_one_character_is_refused() -> None:
    def bytes_of(texts: Sequence[str]) -> list[NDArray[np.int64]]:
        return [
            np.array([(n, n + 1) for n, char in enumerate(text) for _ in char.encode()], dtype=np.int64).reshape(-1, 2)
            for text in texts
        ]

    assert [chunk.end for chunk in _chunks("病院", language="zh", tokens=bytes_of, max_tokens=3)] == [1, 2]
    with pytest.raises(ArgumentError, match="too small for one character"):
        _chunks("病院", language="zh", tokens=bytes_of, max_tokens=2)


def test_the_note_is_tokenized_once_and_its_chunks_once() -> None:
    calls: list[int] = []

    def counting(texts: Sequence[str]) -> list[NDArray[np.int64]]:
        calls.append(len(texts))
        return WORDS(texts)

    text = " ".join(f"Sentence number {n} is here." for n in range(12))
    chunks = _chunks(text, language="en", tokens=counting, max_tokens=30)
    assert calls == [1, len(chunks)]


@pytest.mark.parametrize("filler", [" ", "\t", "\n", ".", ". ", "。", "X:,", "\u0301"])
def test_a_long_run_of_one_character_takes_no_more_than_linear_work(filler: str) -> None:
    text = "a" + filler * 30_000 + "b"
    chunks = _chunks(text, language="en", tokens=WORDS, max_tokens=256)
    _assert_law(text, chunks, WORDS, 256)
