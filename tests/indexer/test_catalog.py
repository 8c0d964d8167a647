from __future__ import annotations

import errno
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from indexer.encoders.catalog import fetch, load_encoder, model_folder
from indexer.errors import EncoderUnavailableError


class AnsweredError(Exception):
    """What the hub's client raises for an answer that is a refusal."""

    def __init__(self, status):
        super().__init__("https://hub.invalid/secret-path")
        self.response = SimpleNamespace(status_code=status)


@pytest.fixture
def hub(monkeypatch):
    """Make the hub's client fail with an error, behind its own of a missing file where ``wrapped``."""

    def fail(error, *, wrapped=False):
        def download(*_, **__):
            if wrapped:
                raise LocalEntryNotFoundError("not in the cache") from error
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    return fail


@pytest.mark.parametrize("found", [load_encoder, model_folder])
def test_what_is_not_cached_is_fetched_by_its_name_in_the_catalog_for_that_pins_the_revision(hub, found):
    hub(None, wrapped=True)
    with pytest.raises(EncoderUnavailableError, match="clinrag encoders fetch multiclinicalbert"):
        found("multiclinicalbert")
    with pytest.raises(EncoderUnavailableError, match="clinrag encoders fetch owner/model"):
        found("owner/model")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("refused"), "not reached .ConnectionError.; check the network"),
        (AnsweredError(401), "answered 401 .*no such model"),
        (AnsweredError(404), "answered 404 .*no such model or revision"),
        (AnsweredError(503), "answered 503 .*try again later"),
        (OSError(errno.ENOSPC, "no space"), "the disk is full"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_failed_fetch_says_what_failed(hub, error, words, wrapped):
    hub(error, wrapped=wrapped)
    with pytest.raises(EncoderUnavailableError, match=words) as caught:
        fetch("multiclinicalbert")
    said = str(caught.value)
    assert said.startswith("YLab-Open/MultiClinicalBERT at revision 1dd4a44 cannot be ")
    assert "local cache" not in said
    assert "secret-path" not in said
