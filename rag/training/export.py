"""A tuned BERT retriever as a packed folder: 4-bit word embeddings, 8-bit layers, one small file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from indexer.encoders.catalog import PACKED_TYPE
from indexer.encoders.packed import FORMAT, GROUP
from indexer.errors import ArgumentError
from rag.training.folder import write_json, write_modules
from rag.training.package_weights import unpack_groups
from rag.training.student import read_prompts

_ST_TYPE = "indexer.encoders.packed_module.PackedTransformer"


def export_packed(
    source: Path,
    out: Path,
    model_id: str,
    groups: tuple[NDArray[np.uint8], NDArray[np.float16]] | None = None,
    max_length: int = 512,
) -> int:
    """Write ``source`` (a BERT sentence-transformers directory) packed and return the bytes of all files.

    Args:
        source: float weights of a BERT with mean pooling.
        out: the folder to write.
        model_id: the name kept in the fingerprint.
        groups: the word embeddings' own 4-bit groups, where they come from such a file and were frozen: taken over as
            they are, so nothing is lost. Without them the embeddings are rounded to groups here.
        max_length: the longest input in tokens.

    Raises:
        ArgumentError: the model is no BERT, or the groups are not its embeddings.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "bert":
        raise ArgumentError("source", f"is a {config.get('model_type')}; only BERT bodies are packed")
    weights = {
        name.removeprefix("bert."): value.float() for name, value in load_file(source / "model.safetensors").items()
    }
    words = weights["embeddings.word_embeddings.weight"].numpy()
    halves, steps = groups if groups is not None else to_groups(words)
    if groups is not None and not np.array_equal(unpack_groups(halves, steps), words):
        raise ArgumentError("groups", "are not the model's word embeddings: they were tuned, or are another model's")
    out.mkdir(parents=True, exist_ok=True)
    packed = _tensors(weights, int(config["num_hidden_layers"]), halves, steps)
    save_file({name: value.contiguous() for name, value in packed.items()}, out / "model.safetensors")
    (out / "model.safetensors").chmod(0o644)
    (out / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    _describe(out, config, model_id, len(halves), max_length, read_prompts(source))
    return sum(path.stat().st_size for path in out.iterdir() if path.is_file())


def _tensors(
    weights: dict[str, Tensor], layers: int, halves: NDArray[np.uint8], steps: NDArray[np.float16]
) -> dict[str, Tensor]:
    packed: dict[str, Tensor] = {
        "word.halves": torch.from_numpy(halves.reshape(len(halves), -1).copy()),
        "word.steps": torch.from_numpy(steps.copy()),
        "positions": (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][:1]
        ).half(),
        "first.weight": weights["embeddings.LayerNorm.weight"],
        "first.bias": weights["embeddings.LayerNorm.bias"],
    }
    for number in range(layers):
        packed.update(_layer(weights, number))
    return packed


def _describe(
    out: Path, config: dict[str, Any], model_id: str, vocabulary: int, max_length: int, prompts: tuple[str, str]
) -> None:
    """Write what the weights are, for this package and for sentence-transformers."""
    query, passage = prompts
    write_json(
        out / "config.json",
        {
            "format": FORMAT,
            "model_id": model_id,
            "model_type": PACKED_TYPE,
            "dim": int(config["hidden_size"]),
            "layers": int(config["num_hidden_layers"]),
            "heads": int(config["num_attention_heads"]),
            "epsilon": float(config["layer_norm_eps"]),
            "vocabulary": vocabulary,
            "max_length": min(max_length, int(config["max_position_embeddings"])),
            "query_prompt": query,
            "passage_prompt": passage,
        },
    )
    write_modules(out, [("", _ST_TYPE)], {"query": query, "passage": passage, "document": passage})


def to_groups(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Return a matrix rounded to 4-bit groups: halves ``(rows, groups, 16)`` and steps ``(rows, groups)``.

    Raises:
        ArgumentError: the columns are no whole number of groups.
    """
    rows, columns = values.shape
    if columns % GROUP:
        raise ArgumentError("values", f"have {columns} columns, which {GROUP} does not divide")
    blocks = values.reshape(rows, -1, GROUP)
    at = np.abs(blocks).argmax(-1, keepdims=True)
    # the extreme value gets the one level that its mirror lacks (-8), so its sign decides the sign of the step
    steps = (np.take_along_axis(blocks, at, -1)[..., 0] / -8.0).astype(np.float16)
    divisor = np.where(steps == 0, 1, steps).astype(np.float32)[..., None]
    levels = np.clip(np.rint(blocks / divisor) + 8, 0, 15).astype(np.uint8)
    return levels[..., : GROUP // 2] | (levels[..., GROUP // 2 :] << 4), steps


def to_bytes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return an ``(out, in)`` matrix as int8 and the float32 scale of each row."""
    scale = weight.abs().amax(1).clamp(min=1e-12) / 127.0  # (out,)
    return torch.round(weight / scale[:, None]).clamp(-127, 127).to(torch.int8), scale


def _layer(weights: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    here, there = f"encoder.layer.{number}.", f"layer.{number}."
    qkv = [here + f"attention.self.{name}" for name in ("query", "key", "value")]
    found = {}
    linear = {
        "qkv": ([weights[name + ".weight"] for name in qkv], [weights[name + ".bias"] for name in qkv]),
        "out": _pair(weights, here + "attention.output.dense"),
        "up": _pair(weights, here + "intermediate.dense"),
        "down": _pair(weights, here + "output.dense"),
    }
    for name, (matrices, biases) in linear.items():
        found[f"{there}{name}.weight"], found[f"{there}{name}.scale"] = to_bytes(torch.cat(matrices))
        found[f"{there}{name}.bias"] = torch.cat(biases)
    for name, source in (("attention_norm", "attention.output.LayerNorm"), ("output_norm", "output.LayerNorm")):
        found[f"{there}{name}.weight"] = weights[f"{here}{source}.weight"]
        found[f"{there}{name}.bias"] = weights[f"{here}{source}.bias"]
    return found


def _pair(weights: dict[str, Tensor], name: str) -> tuple[list[Tensor], list[Tensor]]:
    return [weights[name + ".weight"]], [weights[name + ".bias"]]
