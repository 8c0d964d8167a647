"""A quote is whole sentences: what is said word for word within a sentence may be what the sentence denies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.cite import Cited, Statement, cite, find_quote
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
        ("5 mg", "Apixaban 2.5 mg twice daily. Bisoprolol 5 mg.", "en", "Bisoprolol 5 mg."),
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


def gate(statement: str, *texts: str, authored_at: str | None = None) -> Cited:
    """Return what becomes of a statement that names passages of these texts."""
    passages = []
    for n, text in enumerate(texts, start=1):
        chunk = ChunkSpan(f"n{n}:1:0", 0, len(text))
        passages.append(ContextPassage(n, f"n{n}", 1, None, None, authored_at, None, 0, len(text), text, (chunk,)))
    numbers = tuple(range(1, len(texts) + 1))
    return cite([Statement(statement, numbers)], passages, lambda note_id, _: texts[int(note_id[1:]) - 1], None, "en")


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("Creatinine was 3.1 mg/dL.", "Creatinine was 1.3 mg/dL. Sodium 140 mmol/L."),
        ("Creatinine was 3.1 mg/dL.", "肌酐１．３ mg/dL。钠140。"),
        ("Warfarin 5 mL daily.", "Warfarin 5 mg daily."),
        ("She fell on 3 May 2024.", "Sturz am 5. Mai 2024."),
        ("The patient does not have diabetes.", "Diabetes seit 2010."),
    ],
)
def test_a_statement_with_a_figure_that_its_quotes_lack_is_withheld(statement: str, text: str):
    cited = gate(statement, text)
    assert (cited.text, cited.citations, cited.withheld) == ("", (), 1)


def test_the_sentence_that_holds_the_figure_is_quoted_rather_than_the_likest():
    text = "Creatinine rose after contrast, see below. Sodium 140 mmol/L. Krea 1,3 mg/dl. Seen by Dr. Li."
    cited = gate("Creatinine rose to 1.3 mg/dL after contrast.", text)
    assert "Krea 1,3 mg/dl." in [citation.quote for citation in cited.citations]
    assert "Sodium 140 mmol/L." not in [citation.quote for citation in cited.citations]
    assert cited.withheld == 0


def test_figures_of_two_sentences_are_quoted_by_both_and_marked():
    cited = gate("INR was 2.4 on 5 mg of warfarin.", "INR 2,4.", "Warfarin 5 mg. Bisoprolol 2 mg.")
    assert cited.text == "INR was 2.4 on 5 mg of warfarin. [1][2]"
    assert [citation.quote for citation in cited.citations] == ["INR 2,4.", "Warfarin 5 mg."]


def test_the_date_of_the_note_is_said_by_its_citation():
    text = "Creatinine 1.3 mg/dL."
    assert gate("On 2 March 2024 creatinine was 1.3.", text, authored_at="2024-03-02T08:00:00Z").citations
    assert not gate("On 3 March 2024 creatinine was 1.3.", text, authored_at="2024-03-02T08:00:00Z").citations


def test_a_statement_that_names_nothing_is_withheld_beside_one_that_passes():
    statements = [Statement("Warfarin 5 mg.", (1,)), Statement("All is well.", ()), Statement("So it is.", (9,))]
    cited = cite(statements, [passage("Warfarin 5 mg.")], lambda *_: BEFORE + "Warfarin 5 mg.")
    assert (cited.text, cited.withheld) == ("Warfarin 5 mg. [1]", 2)


def test_what_is_said_again_and_again_is_said_once():
    statements = [Statement("Warfarin 5 mg.", (1,)), Statement("All is well.", ())] * 2000
    cited = cite(statements, [passage("Warfarin 5 mg.")], lambda *_: BEFORE + "Warfarin 5 mg.")
    assert (cited.text, cited.withheld) == ("Warfarin 5 mg. [1]", 1)
