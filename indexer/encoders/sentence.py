"""Any sentence-transformers model, by local path or hub id, behind the encoder port.

Nothing is assumed of the architecture: length, pooling, special tokens, prompts and token type ids come from the
model's own configuration. Hub ids load from the local cache only; `catalog.fetch` is what downloads.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from indexer.encoders.batches import (
    DEVICE_TOKENS,
    Batch,
    Features,
    best_dtype,
    by_length,
    embedded,
    linear_weights,
    on_device,
)
from indexer.encoders.encoder import PromptedEncoder
from indexer.errors import EncoderUnavailableError
from indexer.records import EncoderSpec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_LONGEST_PASSAGE = 8192
_CPU_TOKENS = 8192
# What transformers and sentence-transformers raise for a file that is not what it should be.
_DAMAGE = (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError, RuntimeError, SafetensorError)


class SentenceEncoder(PromptedEncoder):
    """A sentence-transformers directory (or a bare transformers checkpoint, then mean pooling) as an encoder."""

    def __init__(
        self,
        folder: Path,
        *,
        model_id: str | None = None,
        pooling: str | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Load from a local folder.

        Args:
            folder: holds ``modules.json`` (sentence-transformers) or ``config.json`` (transformers).
            model_id: the name kept in the fingerprint; the folder's name where none is given.
            pooling: how a bare checkpoint is pooled: ``mean`` (default) or ``cls``. A sentence-transformers folder
                says it itself.
            device: a torch device; CUDA where there is one, else the CPU.
            dtype: what to compute in; the fastest of the device where none is given.

        Raises:
            EncoderUnavailableError: the folder holds no model that can be loaded.
        """
        weights = weights_sha256(folder)  # before anything is loaded: pickled weights are refused, not read
        self._model = on_device(lambda name: _load(folder, pooling or "mean", name, dtype or best_dtype(name)), device)
        self._device = torch.device(self._model.device)
        self._tokenizer = _fast_tokenizer(self._model, folder)
        _check_whole(self._model, folder)
        self._tokenizing = threading.Lock()  # Its padding and truncation are set anew for every call.
        prompts = {name: text for name, text in (self._model.prompts or {}).items() if text}
        query, passage = prompts.get("query", ""), prompts.get("passage", prompts.get("document", ""))
        width = self._model.get_embedding_dimension()
        if width is None:
            raise EncoderUnavailableError(f"the model in {folder.name} does not say how wide its vectors are")
        self._spec = EncoderSpec(
            model_id=model_id or folder.name,
            weights_sha256=weights,
            pooling=_pooling(self._model),
            query_prompt=query,
            passage_prompt=passage,
            dim=int(width),
            normalize=True,
            max_length=_max_length(self._model),
        )
        overhead = max(len(self._tokenizer(prompt)["input_ids"]) for prompt in (query, passage))
        self._max_tokens = self._spec.max_length - overhead - 2  # two are kept back for how joints tokenise

    @property
    def device(self) -> str:
        """Where the model runs, with its dtype: recorded, no part of the fingerprint."""
        return f"{self._model.device} {next(self._model.parameters()).dtype}"

    @property
    def linear_weights(self) -> int:
        """How many weights each token is multiplied with."""
        return linear_weights(self._model)

    def token_spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return the tokenizer's own spans, ``(n_tokens, 2)`` in code points, without prompt or specials."""
        if not texts:
            return []
        with self._tokenizing:
            encoded = self._tokenizer(
                list(texts), add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
            )
        return [np.array(spans, dtype=np.int64).reshape(-1, 2) for spans in encoded["offset_mapping"]]

    def _encode(self, texts: Sequence[str], prompt: str) -> NDArray[np.float32]:
        def batches(places: Sequence[int]) -> Iterator[Batch]:
            lengths = [len(spans) for spans in self.token_spans([texts[place] for place in places])]
            for place, length in zip(places, lengths, strict=True):
                self._check_length(place, length)
            overhead = self._spec.max_length - self._max_tokens
            budget = DEVICE_TOKENS if self._device.type == "cuda" else _CPU_TOKENS
            for batch in by_length([length + overhead for length in lengths], budget):
                chosen = [places[at] for at in batch]
                with self._tokenizing:
                    features = self._model.preprocess([texts[place] for place in chosen], prompt=prompt or None)
                yield chosen, features

        rows = embedded(texts, self._spec.dim, self._device, batches, self._forward)
        # bfloat16 leaves norms at .998 to 1.002: unit length is made in float32
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / np.where(norms > 0, norms, 1.0), dtype=np.float32)

    def _forward(self, features: Features) -> torch.Tensor:
        rows: torch.Tensor = self._model(dict(features))["sentence_embedding"]
        return rows


def weights_sha256(folder: Path) -> str:
    """Return one hash over the folder's weight files (names and bytes) and its tokenizer, in hexadecimal.

    Raises:
        EncoderUnavailableError: the folder holds no safetensors weights (pickled ones are not loaded).
    """
    weights = sorted(folder.rglob("*.safetensors"))
    if not weights:
        raise EncoderUnavailableError(
            f"{folder.name} holds no .safetensors weights; pickled ones are not loaded: convert the model first"
        )
    total = hashlib.sha256()
    for path in [*weights, *sorted(folder.glob("tokenizer.json")), *sorted(folder.glob("vocab.txt"))]:
        total.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def _load(folder: Path, pooling: str, device: str, dtype: torch.dtype) -> SentenceTransformer:
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
        from transformers.utils import logging as transformers_logging
    except ImportError as error:  # the package is in the core install: this is a broken environment
        raise EncoderUnavailableError("sentence-transformers cannot be imported; install clinrag again") from error
    cast(Any, transformers_logging).disable_progress_bar()
    cast(Any, transformers_logging).set_verbosity_error()  # a missing pooler is no news: pooling is ours
    options: dict[str, Any] = {"dtype": dtype}
    try:
        if (folder / "modules.json").is_file():
            model = SentenceTransformer(
                str(folder), device=device, local_files_only=True, trust_remote_code=False, model_kwargs=options
            )
        elif (folder / "config.json").is_file():
            body = Transformer(str(folder), model_kwargs={**options, "local_files_only": True})
            model = SentenceTransformer(
                modules=[body, Pooling(body.get_embedding_dimension(), pooling_mode=pooling)], device=device
            )
        else:
            raise EncoderUnavailableError(f"{folder.name} holds neither modules.json nor config.json: no model")
    except EncoderUnavailableError:
        raise
    except _DAMAGE as error:
        if isinstance(error, RuntimeError) and device != "cpu":
            raise  # the device's: see `on_device`
        raise EncoderUnavailableError(
            f"the model in {folder.name} cannot be loaded ({type(error).__name__}): a file of it is missing, damaged "
            "or another model's; copy or fetch the model again"
        ) from error
    return model.eval()


def _check_whole(model: SentenceTransformer, folder: Path) -> None:
    """Refuse a model that is partly made up, or that has no vectors for what its tokenizer gives.

    transformers fills weights that a folder lacks with random numbers, other ones in each process, and says so in a log
    line. It marks those that were read. A missing pooler is no fault: pooling is ours.

    Raises:
        EncoderUnavailableError: weights are missing, or the tokenizer is another model's.
    """
    body = getattr(model[0], "auto_model", None)
    if body is None:
        return
    lacking = [
        name
        for name, weight in body.named_parameters()
        if not getattr(weight, "_is_hf_initialized", False) and "pooler" not in name
    ]
    if lacking:
        raise EncoderUnavailableError(
            f"{folder.name} lacks {len(lacking)} of the model's weights (such as {lacking[0]}), so its vectors would "
            "be made up in part; copy or fetch the whole model again"
        )
    rows = getattr(body.get_input_embeddings(), "num_embeddings", None)
    if rows is not None and model.tokenizer.vocab_size > rows:
        raise EncoderUnavailableError(
            f"the tokenizer in {folder.name} is another model's: it has {model.tokenizer.vocab_size:,} tokens, "
            f"the model {rows:,}"
        )


def _fast_tokenizer(model: SentenceTransformer, folder: Path) -> Any:
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise EncoderUnavailableError(f"{folder.name} has no fast tokenizer (tokenizer.json), which exact spans need")
    return tokenizer


def _max_length(model: SentenceTransformer) -> int:
    """Return the longest input in tokens: the model's own figure, else its positions, at most 8,192."""
    stated = model.max_seq_length
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    known = [int(value) for value in (stated, positions) if value]
    # RoBERTa counts positions from padding_idx + 1, so two of them cannot be used
    if (
        config is not None
        and getattr(config, "model_type", "") in {"roberta", "xlm-roberta", "camembert", "longformer"}
        and positions
    ):
        known.append(int(positions) - 2)
    return min([*known, _LONGEST_PASSAGE])


def _pooling(model: SentenceTransformer) -> str:
    for module in model.children():
        if type(module).__name__ == "Pooling":
            return str(cast(Any, module).pooling_mode)
    return json.dumps([type(module).__name__ for module in model.children()])
