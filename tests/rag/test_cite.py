"""A quote is whole sentences: what is said word for word within a sentence may be what the sentence denies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.cite import Statement, cite, find_quote
from rag.context import ChunkSpan, ContextPassage

BEFORE = "Letter. "


def passage(text: str, language: str = "en") -> ContextPassage:
    """Return a passage that stands behind other text in its note."""
    start, end = len(BEFORE), len(BEFORE) + len(text)
    return ContextPassage(
        1, "n", 1, language, None, None, None, start, end, text, (ChunkSpan("n:1:0", start, end, language),)
    )


def quoted(statement: str, text: str, language: str = "en") -> str:
    """Return what is quoted for a statement that names the passage of this text."""
    found = cite([Statement(statement, (1,))], [passage(text, language)], lambda *_: BEFORE + text)
    (citation,) = found.citations
    return citation.quote


@pytest.mark.parametrize(
    ("statement", "text", "language", "quote"),
    [
        ("has fever.", "She denies that she has fever. INR 2.4.", "en", "She denies that she has fever."),
        ("Warfarin 5 mg", "Never give Warfarin 5 mg again.", "en", "Never give Warfarin 5 mg again."),
        ("5 mg", "Apixaban 2.5 mg twice daily. Bisoprolol 5 mg.", "en", "Apixaban 2.5 mg twice daily."),
        ("发热。", "患者否认发热。血压正常。", "zh", "患者否认发热。"),
        ("Fieber.", "Kein Fieber. Fieber.", "de", "Fieber."),
        ("INR 2.4. Warfarin", "Home. INR 2.4. Warfarin was stopped. Done.", "en", "INR 2.4. Warfarin was stopped."),
    ],
)
def test_a_quote_is_the_whole_of_the_sentences_that_hold_a_statement(
    statement: str, text: str, language: str, quote: str
):
    assert quoted(statement, text, language) == quote


def test_of_a_sentence_and_the_end_of_another_the_sentence_itself_is_quoted():
    text = "Denies chest pain. Chest pain. Chest pain since Monday."
    span = find_quote("Chest pain.", passage(text))
    assert (span.start, span.end) == (len(BEFORE) + 19, len(BEFORE) + 30)


@given(text=st.text("ab .。\n", min_size=1).filter(str.strip), data=st.data())
def test_any_part_of_a_passage_is_quoted_by_whole_sentences(text: str, data: st.DataObject):
    one = passage(text)
    start = data.draw(st.integers(0, len(text) - 1))
    statement = text[start : data.draw(st.integers(start + 1, len(text)))]
    span = find_quote(statement, one)
    sentences = one.sentences()
    assert span.start in {sentence.start for sentence in sentences}
    assert span.end in {sentence.end for sentence in sentences}
    assert statement.strip() in one.quote(span) or not any(letter in "ab" for letter in statement)
