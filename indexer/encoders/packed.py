"""The shipped retriever: a small BERT kept at 4 and 8 bits, run with torch and tokenizers alone.

`sentence-transformers` needs seconds to import; a search on the command line does not wait for it. The folder holds

- ``model.safetensors``: word embeddings as 4-bit groups of 32 (``word.halves`` ``(V, D/2) uint8``, byte ``j`` of a
  group has weight ``j`` low and ``j + 16`` high; ``word.steps`` ``(V, D/32) float16``; weight = (half - 8) * step),
  each linear layer as ``(out, in) int8`` with a float32 scale a row, the rest in float;
- ``tokenizer.json``, ``config.json`` (shape, prompts, lengths), ``modules.json`` so that
  ``SentenceTransformer(folder)`` loads the same model through `packed_module`.

Shapes: B texts, T tokens, D width, H heads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from indexer.encoders.batches import (
    DEVICE_TOKENS,
    Batch,
    Features,
    best_dtype,
    by_length,
    embedded,
    linear_weights,
    on_device,
    padded,
)
from indexer.encoders.encoder import PromptedEncoder
from indexer.errors import EncoderUnavailableError
from indexer.records import EncoderSpec

GROUP = 32
FORMAT = 1
_SETTINGS = ("heads", "epsilon", "layers", "dim", "max_length", "model_id", "query_prompt", "passage_prompt")
# larger batches fall out of the processor's second-level cache: measured slower a text
_CPU_TOKENS = 1024


class PackedBody(torch.nn.Module):
    """Token ids to unit vectors. Weights are buffers: this model is read, never trained."""

    word_halves: Tensor
    word_steps: Tensor
    positions: Tensor

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Read a folder; compute in ``dtype``, by default bfloat16 where the processor multiplies it faster.

        Raises:
            EncoderUnavailableError: files missing, damaged, or of a format this version does not know.
        """
        super().__init__()
        self.config = read_config(folder)
        self.dtype = dtype or best_dtype("cpu")
        self.heads = int(self.config["heads"])
        self.epsilon = float(self.config["epsilon"])
        try:
            weights = load_file(folder / "model.safetensors")
            self.register_buffer("word_halves", weights["word.halves"])
            self.register_buffer("word_steps", weights["word.steps"])
            self.register_buffer("positions", weights["positions"].float())
            self.first_norm = self._norm(weights, "first")
            self.layers = torch.nn.ModuleList(
                _Layer(weights, number, self.heads, self.epsilon, self.dtype)
                for number in range(int(self.config["layers"]))
            )
        except (OSError, SafetensorError, KeyError) as error:
            raise EncoderUnavailableError(
                f"the weights in {folder.name} cannot be read ({type(error).__name__}); install clinrag again"
            ) from error
        self.eval()

    @torch.inference_mode()
    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return ``(B, D)`` float32 unit rows of ``(B, T)`` ids and mask (1 is a token)."""
        states = self._embed(tokens).to(self.dtype)  # (B, T, D)
        # to look into a mask on a GPU would be to wait for it
        whole = not mask.is_cuda and bool(mask.all())
        hidden = None if whole else mask[:, None, None, :].bool()  # (B, 1, 1, T)
        for layer in self.layers:
            states = layer(states, hidden)
        weight = mask.unsqueeze(-1).float()  # (B, T, 1)
        pooled = (states.float() * weight).sum(1) / weight.sum(1).clamp(min=1.0)  # (B, D)
        # bfloat16 leaves norms at .998 to 1.002: unit length is made in float32
        return functional.normalize(pooled, dim=-1)

    def _embed(self, tokens: Tensor) -> Tensor:
        flat = tokens.reshape(-1)
        halves = self.word_halves[flat].view(len(flat), -1, GROUP // 2)  # (n, D/32, 16)
        steps = self.word_steps[flat].float().unsqueeze(-1)  # (n, D/32, 1)
        values = torch.cat([halves & 15, halves >> 4], -1).float().sub_(8.0).mul_(steps)  # (n, D/32, 32)
        words = values.view(*tokens.shape, -1)  # (B, T, D)
        return self.first_norm(words + self.positions[: tokens.shape[1]])  # type: ignore[no-any-return]

    def _norm(self, weights: dict[str, Tensor], name: str) -> torch.nn.LayerNorm:
        return _layer_norm(weights, name, self.epsilon, torch.float32)


class _Layer(torch.nn.Module):
    """One post-norm transformer layer."""

    def __init__(self, weights: dict[str, Tensor], number: int, heads: int, epsilon: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = heads
        name = f"layer.{number}."
        self.qkv = _linear(weights, name + "qkv", dtype)
        self.out = _linear(weights, name + "out", dtype)
        self.up = _linear(weights, name + "up", dtype)
        self.down = _linear(weights, name + "down", dtype)
        self.attention_norm = _layer_norm(weights, name + "attention_norm", epsilon, dtype)
        self.output_norm = _layer_norm(weights, name + "output_norm", epsilon, dtype)

    def forward(self, states: Tensor, hidden: Tensor | None) -> Tensor:
        batch, length, width = states.shape
        split = self.qkv(states).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=hidden)
        states = self.attention_norm(states + self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        result: Tensor = self.output_norm(states + self.down(functional.gelu(self.up(states))))
        return result


class PackedEncoder(PromptedEncoder):
    """The encoder port over a packed folder: torch, tokenizers and safetensors, nothing else."""

    def __init__(self, folder: Path, dtype: torch.dtype | None = None, device: str | None = None) -> None:
        """Load the folder.

        Args:
            folder: holds a packed model.
            dtype: what to compute in; the fastest of the device where none is given.
            device: a torch device; CUDA where there is one, else the CPU.

        Raises:
            EncoderUnavailableError: the folder holds no packed model of this format.
        """
        self._body = on_device(lambda name: PackedBody(folder, dtype or best_dtype(name)).to(name), device)
        self._device = self._body.positions.device
        config = self._body.config
        self._tokenizer = load_tokenizer(folder)
        rows, width = self._body.word_halves.shape[0], self._body.word_halves.shape[1] * 2
        shape = (self._tokenizer.get_vocab_size(), int(config["dim"]), int(config["max_length"]))
        if shape[0] > rows or shape[1] != width or shape[2] > len(self._body.positions):
            raise EncoderUnavailableError(f"the tokenizer or config.json in {folder.name} is another model's")
        prompts = (str(config["query_prompt"]), str(config["passage_prompt"]))
        self._spec = EncoderSpec(
            model_id=str(config["model_id"]),
            weights_sha256=weights_sha256(folder),
            pooling="mean",
            query_prompt=prompts[0],
            passage_prompt=prompts[1],
            dim=int(config["dim"]),
            normalize=True,
            max_length=int(config["max_length"]),
        )
        overhead = max(len(self._tokenizer.encode(prompt).ids) for prompt in prompts)
        self._max_tokens = self._spec.max_length - overhead - 2  # two are kept back for how joints tokenise

    @property
    def device(self) -> str:
        """Where the model runs, with its dtype: recorded, no part of the fingerprint."""
        return f"{self._device} {self._body.dtype}"

    @property
    def linear_weights(self) -> int:
        """How many weights each token is multiplied with."""
        return linear_weights(self._body)

    def token_spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return the tokenizer's own spans, ``(n_tokens, 2)`` in code points, without prompt or specials."""
        return own_spans(self._tokenizer, texts)

    def _encode(self, texts: Sequence[str], prompt: str) -> NDArray[np.float32]:
        def batches(places: Sequence[int]) -> Iterator[Batch]:
            # without offsets, which nobody reads here: in half the time
            found = self._tokenizer.encode_batch_fast([prompt + texts[place] for place in places])
            ids = [one.ids for one in found]
            for place, one in zip(places, ids, strict=True):
                if len(one) > self._max_tokens:  # near the limit: the promise is on the text's own tokens
                    self._check_length(place, len(own_spans(self._tokenizer, [texts[place]])[0]))
            budget = DEVICE_TOKENS if self._device.type == "cuda" else _CPU_TOKENS
            for batch in by_length([len(one) for one in ids], budget):
                yield [places[at] for at in batch], padded([ids[at] for at in batch])

        return embedded(texts, self._spec.dim, self._device, batches, self._forward)

    def _forward(self, features: Features) -> Tensor:
        rows: Tensor = self._body(features["input_ids"], features["attention_mask"])
        return rows


def read_config(folder: Path) -> dict[str, Any]:
    """Return the folder's configuration.

    Raises:
        EncoderUnavailableError: missing, or of another format.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderUnavailableError(f"{folder.name} has no readable config.json: no packed model") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise EncoderUnavailableError(f"{folder.name} is no packed model of format {FORMAT}")
    lacking = [name for name in _SETTINGS if name not in config]
    if lacking:
        raise EncoderUnavailableError(f"config.json in {folder.name} does not say {', '.join(lacking)}")
    return config


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the folder's tokenizer, padding and truncation off.

    Raises:
        EncoderUnavailableError: missing or damaged.
    """
    try:
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise EncoderUnavailableError(f"{folder.name} has no readable tokenizer.json") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def own_spans(tokenizer: Tokenizer, texts: Sequence[str]) -> list[NDArray[np.int64]]:
    """Return each text's tokens' spans, ``(n_tokens, 2)`` in code points, without specials."""
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [np.array(one.offsets, dtype=np.int64).reshape(-1, 2) for one in encoded]


def weights_sha256(folder: Path) -> str:
    """Return one hash over weights and tokenizer, in hexadecimal."""
    total = hashlib.sha256()
    for name in ("model.safetensors", "tokenizer.json"):
        with (folder / name).open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def _linear(weights: dict[str, Tensor], name: str, dtype: torch.dtype) -> torch.nn.Linear:
    values = weights[name + ".weight"].float() * weights[name + ".scale"][:, None]  # (out, in)
    layer = torch.nn.Linear(values.shape[1], values.shape[0], device="meta")
    layer.weight = torch.nn.Parameter(values.to(dtype), requires_grad=False)
    layer.bias = torch.nn.Parameter(weights[name + ".bias"].to(dtype), requires_grad=False)
    return layer


def _layer_norm(weights: dict[str, Tensor], name: str, epsilon: float, dtype: torch.dtype) -> torch.nn.LayerNorm:
    layer = torch.nn.LayerNorm(len(weights[name + ".weight"]), eps=epsilon, device="meta")
    layer.weight = torch.nn.Parameter(weights[name + ".weight"].to(dtype), requires_grad=False)
    layer.bias = torch.nn.Parameter(weights[name + ".bias"].to(dtype), requires_grad=False)
    return layer
