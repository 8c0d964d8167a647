from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.bundled import load_questions
from indexer.build import index_notes
from indexer.encoders.encoder import HashingEncoder
from indexer.errors import ArgumentError, TooLargeError
from indexer.library import Library
from indexer.records import Coverage, Note, Scope
from rag.answer import AnswerRequest, answer
from rag.cite import Statement, cite, plain
from rag.context import build_context
from rag.generate import ExtractiveGenerator
from rag.phrases import languages, phrases
from rag.search import SearchRequest, search

ENCODER = HashingEncoder()


def collection_of(tmp_path, notes):
    collection = Library(tmp_path).create("c", "hashing", ENCODER.spec)
    index_notes(collection, ENCODER, notes)
    return collection


class Scripted:
    """A generator that says what it is told."""

    name = "scripted:test"

    def __init__(self, *statements):
        self.statements = statements

    def generate(self, prompt):
        return self.statements


def test_every_citation_of_the_bundled_questions_is_exact_and_numbered_without_gaps(bundled):
    generator = ExtractiveGenerator(ENCODER)
    answered = 0
    for question in load_questions()[::6]:
        scope = Scope(patient_id=question.patient_id, as_of=question.as_of)
        said = answer(bundled, ENCODER, AnswerRequest(question.question, scope), generator)
        marks = [int(n) for n in re.findall(r"\[(\d+)\]", said.answer)]
        assert sorted(set(marks)) == [citation.n for citation in said.citations] == list(range(1, len(set(marks)) + 1))
        for citation in said.citations:
            note = bundled.note(citation.note_id, citation.version)
            assert note.text[citation.start : citation.end] == citation.quote
            assert note.patient_id == question.patient_id or question.patient_id is None
            assert citation.chunk_id.startswith(f"{citation.note_id}:{citation.version}:")
        assert (said.status == "answered") == bool(said.citations)
        answered += bool(said.citations)
    assert answered


def test_what_the_record_is_silent_about_is_not_answered(bundled):
    generator = ExtractiveGenerator(ENCODER)
    for question in load_questions():
        if not question.answerable:
            scope = Scope(patient_id=question.patient_id, as_of=question.as_of)
            said = answer(bundled, ENCODER, AnswerRequest(question.question, scope), generator)
            assert said.status == "insufficient_evidence", question.question_id
            assert said.citations == ()
            assert str(said.coverage.notes_searched) in said.answer


def test_the_answer_quotes_the_sentence_as_it_stands(tmp_path):
    text = "Dr. Li saw him.\r\nWarfarin 5 mg\r\nonce daily since 2.3.2024. Next visit in May."
    collection = collection_of(tmp_path, [Note("n", text, language="en")])
    said = answer(collection, ENCODER, AnswerRequest("warfarin dose"), ExtractiveGenerator(ENCODER))
    assert said.citations[0].quote in text
    assert "Warfarin 5 mg" in said.citations[0].quote
    assert said.answer.endswith("[1]")


def test_without_an_encoder_words_answer_and_the_answer_says_so(tmp_path):
    collection = collection_of(tmp_path, [Note("n", "Warfarin 5 mg daily. Seen by nurse.", language="en")])
    said = answer(collection, None, AnswerRequest("warfarin"), ExtractiveGenerator())
    assert (said.status, said.degraded) == ("answered", ("dense",))


def test_an_encoder_of_another_fingerprint_is_as_good_as_none(tmp_path):
    collection = collection_of(tmp_path, [Note("n", "Warfarin 5 mg daily.", language="en")])
    result = search(collection, HashingEncoder(dim=64), SearchRequest("warfarin"))
    assert result.degraded == ("dense",)
    assert [(hit.scores.dense, hit.scores.lexical is not None) for hit in result.hits] == [(None, True)]


def test_statements_without_a_valid_number_are_dropped(bundled):
    scope = Scope(patient_id="4711")
    generator = Scripted(Statement("Nobody says this.", (99,)), Statement("Nor this.", ()))
    said = answer(bundled, ENCODER, AnswerRequest("warfarin", scope), generator)
    assert said.status == "insufficient_evidence"
    assert said.answer.startswith("Not found in 16 notes, 2021-05-11 to 2024-01-15")
    assert said.degraded == ("draft",)


def test_an_answer_says_that_a_sentence_with_a_wrong_number_was_withheld(tmp_path):
    collection = collection_of(tmp_path, [Note("n", "Creatinine 1.3 mg/dL. Warfarin 5 mg daily.", language="en")])
    right, wrong = Statement("Warfarin 5 mg.", (1,)), Statement("Creatinine was 3.1 mg/dL.", (1,))
    said = answer(collection, ENCODER, AnswerRequest("creatinine, warfarin?"), Scripted(right, wrong))
    assert (said.answer, said.degraded) == ("Warfarin 5 mg. [1]", ("draft",))
    assert answer(collection, ENCODER, AnswerRequest("creatinine?"), Scripted(right)).degraded == ()
    said = answer(collection, ENCODER, AnswerRequest("creatinine?"), Scripted(wrong))
    assert (said.status, said.citations, said.degraded) == ("insufficient_evidence", (), ("draft",))


def test_marks_in_a_note_are_not_marks_of_the_answer(tmp_path):
    collection = collection_of(tmp_path, [Note("n", "Warfarin dose per guideline [7].", language="en")])
    said = answer(collection, ENCODER, AnswerRequest("warfarin dose"), ExtractiveGenerator(ENCODER))
    assert said.answer == "Warfarin dose per guideline (7). [1]"
    assert said.citations[0].quote == "Warfarin dose per guideline [7]."


@pytest.mark.parametrize("language", languages())
def test_the_not_found_sentence_says_what_was_searched_and_denies_nothing(language):
    said = phrases(language)
    many = said.not_found(Coverage(37, ("en",), "2019-02-01", "2024-03-02", 4))
    assert all(part in many for part in ("37", "2019-02-01", "2024-03-02", "4"))
    assert "1" in said.not_found(Coverage(1, ("en",), None, None, 1))
    assert said.not_found(Coverage(0, (), None, None, 0))
    assert "{" not in many


def test_all_languages_have_phrases_with_parallel_lines():
    assert languages() == sorted(["en", "es", "zh", "ja", "ru", "nl", "ro", "fr", "de", "pt", "it"])
    assert len({len(phrases(language).instructions.splitlines()) for language in languages()}) == 1


def test_the_not_found_sentence_is_in_the_language_of_the_question(tmp_path):
    collection = collection_of(tmp_path, [Note("n", "Seen today.", language="en", authored_at="2024-03")])
    for question, start in (
        ("¿El paciente ha recibido alguna vez quimioterapia?", "No encontrado en 1 nota, del 2024-03-01"),
        ("Получал ли пациент когда-либо химиотерапию?", "Не найдено (просмотрено записей: 1, с 2024-03-01"),
        ("患者是否接受过化疗？", "在1份病历记录中未找到，2024-03-01至2024-03-31"),
        ("¿Fuma?", "No encontrado en 1 nota, del 2024-03-01"),
        ("ИМТ", "Не найдено (просмотрено записей: 1, с 2024-03-01"),
        ("CA72.4是多少？", "在1份病历记录中未找到，2024-03-01至2024-03-31"),
    ):
        said = answer(collection, ENCODER, AnswerRequest(question), ExtractiveGenerator(ENCODER))
        assert said.answer.startswith(start)


@pytest.mark.parametrize(("question", "error"), [(" \n", ArgumentError), ("x" * 100_000, TooLargeError)])
def test_blank_and_huge_questions_are_refused_without_repeating_them(bundled, question, error):
    with pytest.raises(error, match=r"^question ") as caught:
        answer(bundled, ENCODER, AnswerRequest(question), ExtractiveGenerator(ENCODER))
    assert len(str(caught.value)) < 200


def test_a_deleted_note_answers_nowhere(tmp_path):
    collection = collection_of(
        tmp_path, [Note("n", "Warfarin 5 mg.", language="en"), Note("m", "Seen.", language="en")]
    )
    request = AnswerRequest("warfarin")
    assert answer(collection, ENCODER, request, ExtractiveGenerator(ENCODER)).citations
    collection.delete_notes(["n"])
    said = answer(collection, ENCODER, request, ExtractiveGenerator(ENCODER))
    assert (said.citations, said.coverage.notes_searched) == ((), 1)
    assert all(hit.note_id == "m" for hit in said.hits)


def test_a_note_that_is_deleted_while_a_model_writes_is_in_no_answer(tmp_path):
    notes = [Note("n", "Warfarin 5 mg daily.", language="en"), Note("m", "Warfarin was stopped.", language="en")]
    collection = collection_of(tmp_path, notes)

    class Slow(Scripted):
        def generate(self, prompt):
            collection.delete_notes(["n"])
            return [Statement(passage.text, (passage.n,)) for passage in prompt.passages]

    said = answer(collection, ENCODER, AnswerRequest("warfarin"), Slow())
    assert [citation.note_id for citation in said.citations] == ["m"]
    assert [hit.note_id for hit in said.hits] == ["m"]
    assert "5 mg" not in said.answer


def test_a_written_sentence_of_any_length_is_compared(tmp_path):
    class Short(HashingEncoder):
        max_tokens = 10

        def encode_passages(self, texts):
            if any(len(spans) > self.max_tokens for spans in self.token_spans(texts)):
                raise ArgumentError("texts[0]", "is too long")
            return super().encode_passages(texts)

    collection = collection_of(tmp_path, [Note("n", "Seen today. Warfarin daily.", language="en")])
    said = answer(collection, Short(), AnswerRequest("warfarin"), Scripted(Statement("warfarin is taken " * 20, (1,))))
    assert [citation.quote for citation in said.citations] == ["Warfarin daily."]


def test_sentences_that_several_statements_rest_on_are_embedded_once(tmp_path):
    class Counting(HashingEncoder):
        read: list[str] = []  # noqa: RUF012

        def encode_passages(self, texts):
            self.read.extend(texts)
            return super().encode_passages(texts)

    encoder = Counting()
    collection = collection_of(tmp_path, [Note("n", "Seen today. Warfarin daily. INR is high.", language="en")])
    statements = [Statement(text, (1,)) for text in ("Takes warfarin.", "A high INR.", "Was seen.")]
    encoder.read.clear()
    said = answer(collection, encoder, AnswerRequest("warfarin"), Scripted(*statements))
    assert [citation.quote for citation in said.citations] == ["Warfarin daily.", "INR is high.", "Seen today."]
    assert len(encoder.read) == len(set(encoder.read))


def test_a_sentence_of_signs_alone_is_none(tmp_path):
    collection = collection_of(tmp_path, [Note("n", "Warfarin 5 mg daily.", language="en")])
    said = answer(collection, ENCODER, AnswerRequest("warfarin"), Scripted(Statement(".", (1,)), Statement("—", (1,))))
    assert (said.status, said.citations) == ("insufficient_evidence", ())


def test_a_correction_hides_its_note_and_an_addendum_is_named_beside(tmp_path):
    notes = [
        Note("a", "Warfarin 5 mg daily.", language="en", patient_id="p"),
        Note("b", "Warfarin 4 mg daily.", language="en", patient_id="p", replaces=("a",)),
        Note("c", "Addendum: warfarin was taken at night.", language="en", patient_id="p", appends="b"),
    ]
    hits = {hit.note_id: hit for hit in search(collection_of(tmp_path, notes), ENCODER, SearchRequest("warfarin")).hits}
    assert set(hits) == {"b", "c"}
    assert (hits["b"].addenda, hits["b"].appends) == (("c",), None)
    assert hits["c"].appends == "b"


def test_context_holds_no_text_twice_and_keeps_to_its_budget(bundled):
    view = bundled.view(Scope(patient_id="4711"))
    passages = view.passages(view.rows)
    context = build_context(view, passages, view.note_text, budget=400)
    spans = sorted((passage.note_id, passage.start, passage.end) for passage in context)
    assert all(one[0] != two[0] or one[2] <= two[1] for one, two in itertools.pairwise(spans))
    assert [passage.n for passage in context] == list(range(1, len(context) + 1))
    assert sum(-(-len(passage.text.encode()) // 3) for passage in context) <= 400 + max(
        -(-len(passage.text.encode()) // 3) for passage in context[:1]
    )
    for passage in context:
        assert view.note_text(passage.note_id, passage.version)[passage.start : passage.end] == passage.text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=40), st.lists(st.integers(-1, 5), max_size=3)), max_size=6), st.data())
def test_whatever_a_model_writes_marks_and_citations_agree_and_quotes_are_exact(bundled_context, drafts, data):
    view, context = bundled_context
    statements = [Statement(text, tuple(numbers)) for text, numbers in drafts]
    if data.draw(st.booleans()):
        passage = data.draw(st.sampled_from(context))
        start = data.draw(st.integers(0, len(passage.text) - 1))
        statements.append(Statement(passage.text[start : start + 30], (passage.n,)))
    cited = cite(statements, context, view.note_text)
    marks = {int(n) for n in re.findall(r"\[(\d+)\]", cited.text)}
    assert marks == {citation.n for citation in cited.citations} == set(range(1, len(cited.citations) + 1))
    for citation in cited.citations:
        assert view.note_text(citation.note_id, citation.version)[citation.start : citation.end] == citation.quote


@pytest.fixture(scope="module")
def bundled_context(bundled):
    view = bundled.view(Scope(patient_id="4711"))
    return view, build_context(view, view.passages(view.rows[:12]), view.note_text)


def test_plain_leaves_no_marks():
    assert plain("a [1, 2]\nb") == "a (1, 2) b"
