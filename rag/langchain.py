"""What does a chat model write? The generator port over LangChain, with tracing off and nothing taken on trust."""

from __future__ import annotations

import contextvars
import logging
import re
import secrets
from typing import TYPE_CHECKING

from indexer.errors import ArgumentError, GeneratorError, MissingExtraError
from indexer.text.sentences import split_sentences
from rag.cite import Statement, marks_inside, read_marks
from rag.generate import Prompt
from rag.phrases import phrases

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage

NOT_FOUND = "NOT_FOUND"
"""What a model is told to reply when the passages do not answer."""

_BODY_LOGGERS = ("openai._base_client", "openai._legacy_response", "openai._response")
"""They write whole requests and responses, so note text, at level DEBUG."""

_EXTRAS = ("openai", "ollama")
"""Providers that an extra of that name installs."""

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
"""What some local models write before they answer: a draft of a draft."""

_THOUGHT_BEGUN = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL)
"""The same of models whose prompt holds the mark of its beginning."""

_ENDED = re.compile(r"[.!?。！？…][\"'”’»」』）)]*\Z|\]\Z")
_CUT = ("length", "max_tokens", "MAX_TOKENS")

_BLANKS = re.compile(r"[^\S\n]{9,}")
"""What a model that hangs writes for pages."""

_LIST_MARK = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")


class LangChainGenerator:
    """Lets a chat model write, at temperature 0; passages go in as data between marks that they cannot guess."""

    def __init__(self, model: BaseChatModel, name: str) -> None:
        """Take a chat model that is set up; `load` sets one up by name."""
        self._model = model
        self._name = name
        for logger in _BODY_LOGGERS:
            logging.getLogger(logger).setLevel(logging.INFO)

    @classmethod
    def load(
        cls, provider: str, model: str, *, base_url: str | None, api_key: str | None, timeout_s: float
    ) -> LangChainGenerator:
        """Return the generator over a provider's model.

        Raises:
            MissingExtraError: LangChain or the provider's package is not installed.
            GeneratorError: the model cannot be set up.
        """
        name = f"{provider}:{model}"
        settings: dict[str, object] = {"temperature": 0, "base_url": base_url, "api_key": api_key}
        if provider == "ollama":
            settings["client_kwargs"] = {"timeout": timeout_s}
        else:
            settings |= {"timeout": timeout_s, "max_retries": 1}
        given = {key: value for key, value in settings.items() if value is not None}
        try:
            from langchain.chat_models import init_chat_model

            chat = init_chat_model(model, model_provider=provider, **given)  # type: ignore[call-overload]
        except ImportError as error:
            if provider in _EXTRAS:
                raise MissingExtraError(f"the generator {name}", provider) from error
            package = f"langchain-{provider.replace('_', '-')}"
            raise ArgumentError("generator", f"{name} needs a package that is not installed: {package}") from error
        except Exception as error:
            raise GeneratorError(
                f"the generator {name} cannot be set up ({type(error).__name__}); check its name and its key"
            ) from error
        return cls(chat, name)

    @property
    def name(self) -> str:
        """The name that `load_generator` takes."""
        return self._name

    def generate(self, prompt: Prompt) -> tuple[Statement, ...]:
        """Return the model's sentences with the passage numbers that it gave.

        Raises:
            GeneratorError: the model did not answer.
        """
        if not prompt.passages:
            return ()
        messages = write_messages(prompt, secrets.token_hex(8))
        # A fresh context: no tracer, callback or run of a caller's comes along.
        text = contextvars.Context().run(self._reply, messages)
        if not text.strip():
            # Said by a model that calls a tool, refuses or thinks for too long: no word of what the notes say.
            raise GeneratorError(f"the generator {self._name} gave no text")
        draft = read_draft(text, prompt.language)
        # What names no passage goes on as it is: the gate withholds it and says so.
        return draft if draft or NOT_FOUND in text else (Statement(text, ()),)

    def _reply(self, messages: list[BaseMessage]) -> str:
        from langsmith.run_helpers import tracing_context

        try:
            with tracing_context(enabled=False):
                message = self._model.invoke(messages)
            # Lone surrogates, which JSON can bring, can be neither compared nor sent.
            text = str(message.text).encode("utf-8", "replace").decode()
            text = _THOUGHT_BEGUN.sub("", _THOUGHT.sub("", text))
            return _whole(text) if _was_cut(message) else text
        except Exception as error:
            # The cause's own message may hold the request, so neither it nor the chain is passed on.
            failure = f"the generator {self._name} failed ({type(error).__name__})"
        raise GeneratorError(failure)


def write_messages(prompt: Prompt, mark: str) -> list[BaseMessage]:
    """Return the messages of a prompt: instructions as system, passages and question as the user's data."""
    from langchain_core.messages import HumanMessage, SystemMessage

    said = phrases(prompt.language)
    blocks = []
    for passage in prompt.passages:
        facts = [passage.authored_at, passage.note_type, passage.language, passage.section_title]
        head = " | ".join(" ".join(fact.split()) for fact in facts if fact)
        blocks.append(f"<<< {mark} [{passage.n}]\n{head}\n{passage.text}\n>>> {mark} [{passage.n}]")
    blocks.append(f"{said.question}: {prompt.question}")
    return [SystemMessage(said.instructions.format(mark=mark)), HumanMessage("\n\n".join(blocks))]


def _was_cut(message: BaseMessage) -> bool:
    """Return whether the model had no room for the end of its reply."""
    said = message.response_metadata
    return any(said.get(key) in _CUT for key in ("finish_reason", "stop_reason", "done_reason"))


def _whole(text: str) -> str:
    """Return a reply that was cut without its last, unfinished sentence: the mark in it may be of its beginning."""
    text = marks_inside(_BLANKS.sub(" ", text)).rstrip()
    last = split_sentences(text, None)[-1:]
    return text if not last or _ENDED.search(text) else text[: last[0].start]


def read_draft(text: str, language: str) -> tuple[Statement, ...]:
    """Return the sentences of a model's reply with their marks; those without any are left out.

    >>> read_draft("Warfarin 5 mg daily. [1] Nothing else is known.", "en")
    (Statement(text='Warfarin 5 mg daily.', passages=(1,)),)
    """
    statements = []
    for line in marks_inside(_BLANKS.sub(" ", text)).splitlines():
        line = _LIST_MARK.sub("", line)
        for span in split_sentences(line, language):
            bare, passages = read_marks(line[span.start : span.end])
            if passages and bare and NOT_FOUND not in bare:
                statements.append(Statement(bare, passages))
    return tuple(statements)
