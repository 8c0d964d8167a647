"""What every generator keeps: `rag.generate.Generator`."""

from __future__ import annotations

import re

import pytest

from indexer.encoders.encoder import HashingEncoder
from rag.cite import cite
from rag.context import ChunkSpan, ContextPassage
from rag.generate import ExtractiveGenerator, Prompt, load_generator
from tests.rag.chat_server import ChatServer

NOTES = {
    ("n1", 1): "Discharge letter.\nWarfarin 5 mg once daily in the evening. INR 2.4 on 2024-03-02.",
    ("n2", 1): "出院诊断：房颤。华法林 5mg 每晚一次。复查INR。",
    ("n3", 2): "Pacient afebril. Se continuă tratamentul cu metoprolol 50 mg.",
}


def passage(n, note, language):
    text = NOTES[note]
    chunk = ChunkSpan(f"{note[0]}:{note[1]}:0", 0, len(text))
    return ContextPassage(n, *note, language, "letter", "2024-03-02", None, 0, len(text), text, (chunk,))


PASSAGES = (passage(1, ("n1", 1), "en"), passage(2, ("n2", 1), "zh"), passage(3, ("n3", 2), "ro"))


class GeneratorSuite:
    """Subclasses give the fixture ``generator``, set up so that it can answer which dose of warfarin is taken."""

    question = "What dose of warfarin does the patient take?"

    def test_every_statement_names_a_passage_of_the_prompt(self, generator):
        """If this fails, check that numbers are passage numbers (`ContextPassage.n`), not positions."""
        statements = generator.generate(Prompt(self.question, "en", PASSAGES))
        assert statements
        for statement in statements:
            assert statement.text.strip()
            assert statement.passages
            assert set(statement.passages) <= {1, 2, 3}

    def test_statements_pass_the_gate_with_exact_quotes(self, generator):
        """If this fails, check that marks are taken out of the statement's text."""
        statements = generator.generate(Prompt(self.question, "en", PASSAGES))
        cited = cite(statements, PASSAGES, lambda *note: NOTES[note])
        assert [citation.n for citation in cited.citations] == list(range(1, len(cited.citations) + 1))
        assert {int(n) for n in re.findall(r"\[(\d+)\]", cited.text)} == {citation.n for citation in cited.citations}
        for citation in cited.citations:
            assert NOTES[citation.note_id, citation.version][citation.start : citation.end] == citation.quote
        assert "5 mg" in cited.citations[0].quote

    def test_no_passages_give_no_statements(self, generator):
        """If this fails, check that an empty context never reaches a model: it would answer from memory."""
        assert generator.generate(Prompt(self.question, "en", ())) == ()

    def test_a_question_in_another_language_is_taken(self, generator):
        """If this fails, check that nothing assumes that question and passages share a language."""
        statements = generator.generate(Prompt("患者服用多少剂量的华法林 warfarin?", "zh", PASSAGES))
        assert all(set(statement.passages) <= {1, 2, 3} for statement in statements)

    def test_the_name_is_what_load_generator_takes(self, generator):
        """If this fails, an answer cannot say who wrote it."""
        assert generator.name == "extractive" or ":" in generator.name


class TestExtractive(GeneratorSuite):
    @pytest.fixture
    def generator(self):
        return ExtractiveGenerator(HashingEncoder())

    def test_equal_prompts_give_equal_drafts(self, generator):
        prompt = Prompt(self.question, "en", PASSAGES)
        assert generator.generate(prompt) == generator.generate(prompt)


class TestExtractiveWithoutEncoder(GeneratorSuite):
    @pytest.fixture
    def generator(self):
        return ExtractiveGenerator()


class TestLangChain(GeneratorSuite):
    @pytest.fixture
    def generator(self):
        with ChatServer("Warfarin 5 mg is taken once daily [1][2]. It is the evening dose. [1]") as server:
            yield load_generator("openai:test-model", base_url=server.url, api_key="none", timeout_s=10)
