from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

from indexer.errors import ArgumentError, GeneratorError, MissingExtraError
from rag.generate import ExtractiveGenerator, Prompt, load_generator
from rag.langchain import LangChainGenerator, read_draft, write_messages
from rag.phrases import languages
from tests.contracts.test_generator import PASSAGES
from tests.rag.chat_server import ChatServer

CANARY = "Warfarin 5 mg once daily in the evening"
PROMPT = Prompt("What dose of warfarin?", "en", PASSAGES)


def ask(server, prompt=PROMPT, timeout_s=10.0):
    return load_generator("openai:m", base_url=server.url, api_key="none", timeout_s=timeout_s).generate(prompt)


def test_passages_and_question_are_data_of_the_user_and_never_in_the_system_role():
    with ChatServer("5 mg [1].") as server:
        ask(server)
        system, user = server.last["messages"]
        assert (system["role"], user["role"]) == ("system", "user")
        assert CANARY not in system["content"]
        assert PROMPT.question not in system["content"]
        assert CANARY in user["content"]
        assert "华法林" in user["content"]
        assert user["content"].endswith(PROMPT.question)


def test_the_model_is_asked_at_temperature_zero_at_the_given_address():
    with ChatServer("5 mg [1].") as server:
        ask(server)
        assert [path for path, _ in server.requests] == ["/v1/chat/completions"]
        assert server.last["temperature"] == 0
        assert server.last["model"] == "m"


def test_passages_stand_between_marks_that_change_with_every_call():
    with ChatServer("5 mg [1].") as server:
        marks = set()
        for _ in range(2):
            ask(server)
            system, user = (message["content"] for message in server.last["messages"])
            mark = user.split()[1]
            assert mark in system
            assert user.count(f"<<< {mark} [") == user.count(f">>> {mark} [") == len(PASSAGES)
            marks.add(mark)
        assert len(marks) == 2


@pytest.mark.parametrize("language", languages())
def test_instructions_of_every_language_carry_the_mark_and_the_way_out(language):
    system, user = write_messages(Prompt("?", language, PASSAGES), "f00")
    assert "f00" in system.content
    assert "NOT_FOUND" in system.content
    assert "[1]" in system.content
    assert "{" not in system.content + user.content


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("NOT_FOUND", []),
        ("NOT_FOUND [1]", []),
        ("", []),
        ("Warfarin 5 mg.", []),
        ("Warfarin 5 mg [1].", [("Warfarin 5 mg.", (1,))]),
        ("Warfarin 5 mg. [1][2] INR 2.4. [3]", [("Warfarin 5 mg.", (1, 2)), ("INR 2.4.", (3,))]),
        ("- Warfarin 5 mg [1, 2]\n2. INR 2.4 [1]", [("Warfarin 5 mg", (1, 2)), ("INR 2.4", (1,))]),
        ("服用华法林5mg【1】。复查INR［2］。", [("服用华法林5mg。", (1,)), ("复查INR。", (2,))]),
        ("服用华法林5mg。[1]复查INR。[2]", [("服用华法林5mg。", (1,)), ("复查INR。", (2,))]),
    ],
)
def test_a_draft_is_read_sentence_by_sentence(reply, read):
    assert [(statement.text, statement.passages) for statement in read_draft(reply, "zh")] == read


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_a_failing_model_is_an_error_without_a_word_of_notes_or_question(status, monkeypatch):
    with ChatServer("", status=status) as server, pytest.raises(GeneratorError, match="openai:m failed") as caught:
        generator = load_generator("openai:m", base_url=server.url, api_key="none", timeout_s=5)
        generator._model.root_client.max_retries = 0
        ask_error = generator.generate
        ask_error(PROMPT)
    chain = [caught.value, caught.value.__cause__, caught.value.__context__]
    assert not any("arfarin" in str(link) or "华法林" in str(link) for link in chain if link is not None)


def said_by(message):
    model = GenericFakeChatModel(messages=iter([message]))
    return [(one.text, one.passages) for one in LangChainGenerator(model, "fake:m").generate(PROMPT)]


@pytest.mark.parametrize(
    "message",
    [
        AIMessage(""),
        AIMessage(" \n"),
        AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "1"}]),
        AIMessage([{"type": "reasoning", "reasoning": "Warfarin 5 mg [1]."}]),
        AIMessage("<think>Perhaps warfarin 5 mg [1]. Or"),
    ],
)
def test_a_model_that_gives_no_text_has_not_said_that_nothing_was_found(message):
    with pytest.raises(GeneratorError, match="fake:m gave no text"):
        said_by(message)


@pytest.mark.parametrize("begin", ["<think>", "", "<think>A</think>\n<thinking>", "<think>A</think>\n"])
def test_what_a_model_thinks_aloud_is_no_part_of_its_draft(begin):
    message = AIMessage(f"{begin}Is it 10 mg [1]?\n10 mg [1].</think>\nIt is 5 mg [1].")
    assert said_by(message) == [("It is 5 mg.", (1,))]


def test_of_a_draft_that_was_cut_the_last_sentence_is_left_out():
    text = "Warfarin 5 mg [1]. Bisoprolol [2] was never"
    assert said_by(AIMessage(text, response_metadata={"finish_reason": "length"})) == [("Warfarin 5 mg.", (1,))]
    whole = AIMessage("Warfarin 5 mg [1]. INR 2.4 [2].", response_metadata={"finish_reason": "length"})
    assert said_by(whole) == [("Warfarin 5 mg.", (1,)), ("INR 2.4.", (2,))]


def test_a_draft_without_any_mark_goes_to_the_gate_as_it_is():
    assert said_by(AIMessage("Warfarin 5 mg.")) == [("Warfarin 5 mg.", ())]
    assert said_by(AIMessage("NOT_FOUND")) == []


def test_signs_without_end_and_half_characters_are_no_obstacle():
    blanks = "\t" * 100_000 + " " * 100_000
    assert said_by(AIMessage(f"Warfarin{blanks}5 mg [1]{blanks}.")) == [("Warfarin 5 mg.", (1,))]
    assert said_by(AIMessage("Warfarin 5 mg [1]. " + "!?." * 100_000)) == [("Warfarin 5 mg.", (1,))]
    assert said_by(AIMessage("Warfarin 5 mg \ud83d [1].")) == [("Warfarin 5 mg?.", (1,))]


def test_marks_in_two_pairs_of_brackets_and_absurd_numbers_are_read():
    assert said_by(AIMessage("Warfarin 5 mg [[1]].")) == [("Warfarin 5 mg.", (1,))]
    assert said_by(AIMessage("Warfarin 5 mg [[1], [2]].")) == [("Warfarin 5 mg.", (1, 2))]
    assert said_by(AIMessage(f"Warfarin 5 mg [{'9' * 5000}]."))[0][1] == ()


def test_an_unreachable_model_is_an_error():
    with ChatServer("") as server:
        pass
    generator = load_generator("openai:m", base_url=server.url, api_key="none", timeout_s=5)
    generator._model.root_client.max_retries = 0
    with pytest.raises(GeneratorError, match="openai:m failed"):
        generator.generate(PROMPT)


def test_note_text_is_not_logged_at_any_level(caplog):
    with caplog.at_level(logging.DEBUG), ChatServer("5 mg [1].") as server:
        ask(server)
    assert "arfarin" not in caplog.text
    assert "华法林" not in caplog.text
    assert "\\u534e" not in caplog.text


class Watcher(GenericFakeChatModel):
    """A model that keeps the callback handlers it ran under."""

    seen: list = []  # noqa: RUF012 - a pydantic field

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.seen.append([type(handler).__name__ for handler in run_manager.handlers])
        return super()._generate(messages, stop, run_manager, **kwargs)


@pytest.mark.parametrize("prefix", ["LANGSMITH", "LANGCHAIN"])
def test_tracing_stays_off_whatever_the_environment_says(prefix, monkeypatch):
    import langsmith.utils
    from langchain_core.tracers.langchain import wait_for_all_tracers

    with ChatServer("") as tracer:
        monkeypatch.setenv(f"{prefix}_TRACING" if prefix == "LANGSMITH" else "LANGCHAIN_TRACING_V2", "true")
        monkeypatch.setenv(f"{prefix}_ENDPOINT", tracer.url)
        monkeypatch.setenv(f"{prefix}_API_KEY", "none")
        langsmith.utils.get_env_var.cache_clear()
        try:
            assert langsmith.utils.tracing_is_enabled()  # else the test below proves nothing
            model = Watcher(messages=iter([AIMessage("5 mg [1]."), AIMessage("5 mg [1].")]), seen=[])
            assert LangChainGenerator(model, "fake:m").generate(PROMPT)
            with pytest.MonkeyPatch.context() as outer:
                outer.setenv("LANGCHAIN_PROJECT", "p")
                assert LangChainGenerator(model, "fake:m").generate(PROMPT)
            wait_for_all_tracers()
        finally:
            monkeypatch.undo()
            langsmith.utils.get_env_var.cache_clear()
        assert model.seen == [[], []]
        assert tracer.requests == []


def test_a_name_that_is_none_is_refused_with_the_form():
    with pytest.raises(ArgumentError, match="provider:model"):
        load_generator("gpt-4o")
    with pytest.raises(ArgumentError, match="provider:model"):
        load_generator("openai:")
    assert isinstance(load_generator("extractive"), ExtractiveGenerator)


def test_a_provider_that_is_not_installed_is_named_with_its_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, "langchain_ollama", None)
    with pytest.raises(MissingExtraError, match=r"clinrag\[ollama\]"):
        load_generator("ollama:llama3")
    monkeypatch.setitem(sys.modules, "langchain", None)
    monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
    with pytest.raises(MissingExtraError, match=r"clinrag\[openai\]"):
        load_generator("openai:gpt-4o-mini", api_key="none")


def test_an_unknown_provider_is_an_error_and_not_a_guess():
    with pytest.raises(GeneratorError, match="nobody:m cannot be set up"):
        load_generator("nobody:m")


def test_importing_rag_brings_no_heavy_engine():
    code = (
        "import sys, rag.answer, rag.search, rag.generate\n"
        "print([name for name in ('torch', 'langchain', 'langchain_core', 'faiss', 'openai') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
