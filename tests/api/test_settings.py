"""Settings come from the environment alone, and a mistake there is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.settings import from_environment
from indexer.errors import ArgumentError


@pytest.mark.parametrize(
    ("environment", "home"),
    [
        ({"CLINRAG_HOME": "/srv/notes", "XDG_DATA_HOME": "/xdg"}, Path("/srv/notes")),
        ({"XDG_DATA_HOME": "/xdg"}, Path("/xdg/clinrag")),
        ({"XDG_DATA_HOME": "relative/is/invalid"}, Path.home() / ".local/share/clinrag"),
        ({}, Path.home() / ".local/share/clinrag"),
        ({"CLINRAG_HOME": "", "XDG_DATA_HOME": ""}, Path.home() / ".local/share/clinrag"),
    ],
)
def test_the_home_folder(environment: dict[str, str], home: Path):
    assert from_environment(environment).home == home


def test_a_user_without_a_home_folder_names_one(monkeypatch: pytest.MonkeyPatch):
    def nobody(*_: object) -> None:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    for name in ("getpwuid", "getpwnam"):
        monkeypatch.setattr(f"pwd.{name}", nobody)
    for environment in ({}, {"CLINRAG_HOME": "~nobody/notes"}):
        with pytest.raises(ArgumentError, match=r"CLINRAG_HOME has to be a full path: ~ stands for no folder here"):
            from_environment(environment)
    assert from_environment({"CLINRAG_HOME": "/srv/notes"}).home == Path("/srv/notes")
    assert from_environment({}, Path("/data")).home == Path("/data"), "as --home does"


def test_defaults_serve_loopback_without_a_language_model():
    settings = from_environment({})
    assert settings.loopback
    assert settings.generators == ("extractive",)


def test_values_are_read():
    settings = from_environment(
        {
            "CLINRAG_HOST": "0.0.0.0",
            "CLINRAG_PORT": "9000",
            "CLINRAG_GENERATORS": "extractive, ollama:llama3.1",
            "CLINRAG_GENERATOR_URL": "http://llm:11434",
            "CLINRAG_API_KEY": "k" * 32,
            "CLINRAG_LOG_LEVEL": "warning",
        }
    )
    assert (settings.host, settings.port, settings.loopback) == ("0.0.0.0", 9000, False)
    assert settings.generators == ("extractive", "ollama:llama3.1")
    assert (settings.generator_url, settings.api_key, settings.log_level) == ("http://llm:11434", "k" * 32, "WARNING")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLINRAG_PORT", "eighty"),
        ("CLINRAG_PORT", "70000"),
        ("CLINRAG_API_KEY", "too-short"),
        ("CLINRAG_API_KEY", "ключ" * 10),
        ("CLINRAG_API_KEY", "k" * 31 + "\n" + "k" * 31),
        ("CLINRAG_LOG_LEVEL", "loud"),
        ("CLINRAG_MAX_BODY_BYTES", "77"),
        ("CLINRAG_GENERATORS", "extractive,gpt-4o"),
        ("CLINRAG_GENERATORS", "openai:"),
    ],
)
def test_a_wrong_value_names_its_variable_and_does_not_repeat_it(name: str, value: str):
    with pytest.raises(ArgumentError, match=name) as found:
        from_environment({name: value})
    assert value not in str(found.value)
