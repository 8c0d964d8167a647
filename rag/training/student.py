"""The model in training: texts to unit vectors with gradients, and a frozen teacher that remembers what it said.

Shapes: B texts, T tokens, D dim.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_CHUNK_TOKENS = 2048
_LEAST_CHUNK = 16
_FROM_PADDING = {"roberta", "xlm-roberta", "camembert", "longformer"}


class Student(torch.nn.Module):
    """A transformers encoder with mean pooling; its word embeddings are frozen."""

    def __init__(self, folder: Path, max_length: int = 128, bfloat16: bool = False) -> None:
        """Load a sentence-transformers directory whose pooling is the mean."""
        super().__init__()
        from tokenizers import Tokenizer
        from transformers import AutoModel

        options: dict[str, Any] = {"add_pooling_layer": False} if _has_pooler(folder) else {}
        self.body = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32, **options)
        for module in self.body.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # vectors are compared with a teacher's: noise would be distilled as well
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()  # a checkpoint may bring one along; what is cut is cut here
        self.max_length = min(max_length, _positions(self.body.config))
        self.in_bfloat16 = bfloat16
        self.source = folder
        self.prompts = read_prompts(folder)
        self._chunk_tokens = _CHUNK_TOKENS
        self._recomputes = False
        self.body.get_input_embeddings().weight.requires_grad_(False)

    def token_ids(self, texts: Sequence[str], prompt: str, max_length: int | None = None) -> list[list[int]]:
        """Return token ids with prompt and special tokens, cut to the longest length."""
        longest = min(max_length or self.max_length, _positions(self.body.config))
        found = []
        for one in self.tokenizer.encode_batch_fast([prompt + text for text in texts]):
            ids = list(one.ids)
            found.append(ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]])
        return found

    def forward(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Return ``(B, D)`` float32 unit rows, in the order given; chunks of like length keep padding small."""
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        device = next(self.body.parameters()).device
        parts: list[Tensor] = []
        start = 0
        while start < len(order):
            end = start + 1
            while end < len(order) and (end + 1 - start) * len(ids[order[end]]) <= self._chunk_tokens:
                end += 1
            chunk = [ids[index] for index in order[start:end]]
            width = max(map(len, chunk))
            tokens = torch.zeros((len(chunk), width), dtype=torch.long)  # (b, T)
            mask = torch.zeros((len(chunk), width), dtype=torch.long)  # (b, T)
            for row, one in enumerate(chunk):
                tokens[row, : len(one)] = torch.as_tensor(one)
                mask[row, : len(one)] = 1
            tokens, mask = tokens.to(device), mask.to(device)
            if self._recomputes and torch.is_grad_enabled():
                parts.append(checkpoint(self._pooled, tokens, mask, use_reentrant=False))
            else:
                parts.append(self._pooled(tokens, mask))
            start = end
        rows = torch.cat(parts)  # in length order
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.as_tensor(order)] = torch.arange(len(order))
        return torch.nn.functional.normalize(rows[back.to(device)], dim=-1)

    def _pooled(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the mean states ``(b, D)`` of one chunk."""
        # the body alone in bfloat16: similarities need float32 (a step of bfloat16 near 1 is .004)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            states = self.body(input_ids=tokens, attention_mask=mask).last_hidden_state
        states = states.float()  # (b, T, D)
        weight = mask.unsqueeze(-1).float()
        mean: Tensor = (states * weight).sum(1) / weight.sum(1)
        return mean

    def shrink(self) -> bool:
        """Let the next pass take less memory, for the same vectors and gradients; false where it cannot.

        First a chunk's states are computed again on the way back instead of being kept, then chunks are halved.
        """
        if not self._recomputes:
            self._recomputes = True
        else:
            self._chunk_tokens //= 2
        return self._chunk_tokens >= _LEAST_CHUNK

    def save(self, out: Path) -> None:
        """Write the model as it is, beside the pooling and tokenizer that it was loaded with."""
        shutil.copytree(self.source, out, dirs_exist_ok=True)
        self.body.save_pretrained(out)

    def encode(self, texts: Sequence[str], prompt: str, max_length: int | None = None) -> Tensor:
        """Return ``(B, D)`` unit rows of the texts."""
        result: Tensor = self(self.token_ids(texts, prompt, max_length))
        return result

    def trained(self) -> dict[str, Tensor]:
        """Return the parameters that training changes, by name."""
        return {name: value for name, value in self.body.named_parameters() if value.requires_grad}


class Teacher:
    """A frozen copy of the start; a vector is computed once a text and remembered at half precision."""

    def __init__(self, model: Student) -> None:
        """Take a model that nobody trains."""
        self._model = model.eval().requires_grad_(False)
        self._known: dict[tuple[str, str, int], np.ndarray[Any, np.dtype[np.float16]]] = {}

    @torch.no_grad()
    def encode(self, texts: Sequence[str], prompt: str, max_length: int = 0) -> Tensor:
        """Return ``(B, D)`` unit rows of the texts as the untrained model sees them."""
        keys = [(prompt, text, max_length) for text in texts]
        new = sorted({key for key in keys if key not in self._known})
        if new:
            rows = self._model.encode([text for _, text, _ in new], prompt, max_length or None)
            for key, row in zip(new, rows.cpu().numpy().astype(np.float16), strict=True):
                self._known[key] = row
        found = torch.from_numpy(np.stack([self._known[key] for key in keys]).astype(np.float32))
        return torch.nn.functional.normalize(found, dim=-1)


def read_prompts(folder: Path) -> tuple[str, str]:
    """Return what a sentence-transformers directory puts before a query and a passage; nothing where it is silent."""
    path = folder / "config_sentence_transformers.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return both_prompts(content.get("prompts") or {})


def both_prompts(known: Mapping[str, str | None]) -> tuple[str, str]:
    """Return the prompts of a query and of a passage, which some models call a document."""
    return known.get("query") or "", known.get("passage") or known.get("document") or ""


def _positions(config: Any) -> int:
    """Return the longest input that the model has positions for."""
    known = int(getattr(config, "max_position_embeddings", 0) or 1 << 20)
    # RoBERTa and its kin count positions from the padding index on, so two of them cannot be used
    return known - 2 if config.model_type in _FROM_PADDING else known


def _has_pooler(folder: Path) -> bool:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("model_type") in {"bert", *_FROM_PADDING}
