"""The packed retriever as a sentence-transformers module, named in its ``modules.json``.

No code comes from the model's folder: the class is this installed one. sentence-transformers from 6.0 on wants its
remote-code flag before it imports any class outside its own name space; `sentence_transformer` needs no flag.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule

from indexer.encoders.batches import padded
from indexer.encoders.packed import PackedBody, load_tokenizer


class PackedTransformer(InputModule):  # type: ignore[misc,unused-ignore]
    """Texts to unit vectors in one module: tokens, body, mean pooling, unit length."""

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Read the packed folder."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.folder = folder
        self.body = PackedBody(folder, dtype)
        self.tokenizer = load_tokenizer(folder)
        self.max_seq_length = int(self.body.config["max_length"])

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, torch.Tensor | Any]:
        """Return padded ids and mask; longer texts are cut, as sentence-transformers does."""
        encoded = self.tokenizer.encode_batch_fast([(prompt or "") + text for text in inputs])
        longest = self.max_seq_length
        ids = [one.ids if len(one.ids) <= longest else [*one.ids[: longest - 1], one.ids[-1]] for one in encoded]
        return dict(padded(ids))

    def forward(self, features: dict[str, torch.Tensor | Any], **_: Any) -> dict[str, torch.Tensor | Any]:
        """Add ``sentence_embedding``."""
        features["sentence_embedding"] = self.body(features["input_ids"], features["attention_mask"])
        return features

    def get_embedding_dimension(self) -> int:
        """Return the width of a vector."""
        return int(self.body.config["dim"])

    get_sentence_embedding_dimension = get_embedding_dimension

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Copy the packed files."""
        for name in ("model.safetensors", "tokenizer.json", "config.json"):
            (Path(output_path) / name).write_bytes((self.folder / name).read_bytes())

    @classmethod
    def load(  # type: ignore[override]
        cls, model_name_or_path: str, subfolder: str = "", **options: Any
    ) -> PackedTransformer:
        """Load from a folder; a ``dtype`` (or ``torch_dtype``) among ``model_kwargs`` is followed."""
        wanted = options.get("model_kwargs") or {}
        dtype = wanted.get("dtype", wanted.get("torch_dtype"))
        return cls(Path(model_name_or_path) / subfolder, dtype if isinstance(dtype, torch.dtype) else None)


def sentence_transformer(folder: Path) -> SentenceTransformer:
    """Return the packed folder as a ``SentenceTransformer`` with its prompts."""
    module = PackedTransformer(folder)
    config = module.body.config
    prompts = {
        "query": config["query_prompt"],
        "passage": config["passage_prompt"],
        "document": config["passage_prompt"],
    }
    return SentenceTransformer(modules=[module], prompts=prompts, device="cpu")
