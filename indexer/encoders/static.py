"""A static encoder: a text's vector is the mean of one row a token, at unit length; no layers, so it is fast.

Read with torch and tokenizers alone, what ``sentence-transformers`` takes seconds to import for. The folder is its
``StaticEmbedding`` (with or without its ``Normalize``), as `clinrag train` and model2vec write it: ``modules.json``,
``tokenizer.json`` and ``model.safetensors`` with a table ``(V, D)``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from indexer.encoders.batches import WINDOW_TEXTS
from indexer.encoders.encoder import PromptedEncoder
from indexer.encoders.packed import load_tokenizer, own_spans
from indexer.encoders.sentence import weights_sha256
from indexer.errors import EncoderUnavailableError
from indexer.records import EncoderSpec

_KINDS = (["StaticEmbedding"], ["StaticEmbedding", "Normalize"])
_LONGEST_PASSAGE = 8192  # there is no limit in the model: a passage ends somewhere


class StaticEncoder(PromptedEncoder):
    """A sentence-transformers directory with a ``StaticEmbedding`` as an encoder, on the CPU."""

    linear_weights = 0
    _max_tokens = _LONGEST_PASSAGE

    def __init__(self, folder: Path, model_id: str | None = None) -> None:
        """Load from a local folder; ``model_id`` is the name kept in the fingerprint, the folder's by default.

        Raises:
            EncoderUnavailableError: files missing or damaged, or the table does not hold the tokenizer's tokens.
        """
        place = folder / str(_modules(folder)[0].get("path", ""))
        self._tokenizer = load_tokenizer(place)
        self._table = _table(place)
        if len(self._table) < self._tokenizer.get_vocab_size():
            raise EncoderUnavailableError(f"{folder.name} has fewer rows than its tokenizer has tokens")
        prompts = _prompts(folder / "config_sentence_transformers.json")
        self._spec = EncoderSpec(
            model_id=model_id or folder.name,
            weights_sha256=weights_sha256(folder),
            pooling="mean",
            query_prompt=prompts.get("query") or "",
            passage_prompt=prompts.get("passage") or prompts.get("document") or "",
            dim=self._table.shape[1],
            normalize=True,
            max_length=_LONGEST_PASSAGE,
        )

    @property
    def device(self) -> str:
        """Where the model runs, with its dtype: recorded, no part of the fingerprint."""
        return f"cpu {self._table.dtype}"

    def token_spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return the tokenizer's own spans, ``(n_tokens, 2)`` in code points, without prompt or specials."""
        return own_spans(self._tokenizer, texts)

    def _encode(self, texts: Sequence[str], prompt: str) -> NDArray[np.float32]:
        rows = np.zeros((len(texts), self._spec.dim), dtype=np.float32)
        for at in range(0, len(texts), WINDOW_TEXTS):
            part = [prompt + text if text.strip() else "" for text in texts[at : at + WINDOW_TEXTS]]
            found = self._tokenizer.encode_batch_fast(part, add_special_tokens=False)
            ids = [one.ids for one in found]
            for place, one in enumerate(ids, at):
                if len(one) > _LONGEST_PASSAGE:  # near the limit: the promise is on the text's own tokens
                    self._check_length(place, len(own_spans(self._tokenizer, [texts[place]])[0]))
            rows[at : at + len(part)] = self._means(ids).numpy()
        return rows

    def _means(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Return ``(B, D)`` unit rows; zeros for a text without a token."""
        starts = np.cumsum([0, *map(len, ids)])[:-1]
        flat = torch.from_numpy(np.concatenate([np.asarray(one, dtype=np.int64) for one in ids]))
        with torch.inference_mode():
            means = functional.embedding_bag(flat, self._table, torch.from_numpy(starts), mode="mean")
            return functional.normalize(means.float(), dim=-1)


def is_static(folder: Path) -> bool:
    """Whether a folder is a sentence-transformers directory of a token table alone."""
    if not (folder / "modules.json").is_file():
        return False
    return [str(one.get("type", "")).rpartition(".")[2] for one in _modules(folder)] in _KINDS


def _modules(folder: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [one for one in content if isinstance(one, dict)] if isinstance(content, list) else []


def _prompts(path: Path) -> dict[str, str]:
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return dict(config.get("prompts") or {})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise EncoderUnavailableError(f"{path.parent.name} has no readable {path.name}") from error


def _table(folder: Path) -> Tensor:
    """Return the table ``(V, D)``; model2vec's own files may share rows among tokens and weight each token."""
    try:
        weights = load_file(folder / "model.safetensors")
        table = weights["embedding.weight"] if "embedding.weight" in weights else weights["embeddings"]
    except (OSError, SafetensorError, KeyError) as error:
        raise EncoderUnavailableError(f"{folder.name} has no readable table in model.safetensors") from error
    if "embedding.weight" not in weights:
        table = table[weights["mapping"].long()] if "mapping" in weights else table
        table = table.float() * weights["weights"].float()[:, None] if "weights" in weights else table
    return table if table.dtype == torch.float16 else table.float()
