"""A sentence-transformers directory, written file by file: encoder, tokenizer, pooling, prompts.

Written by hand and not by ``SentenceTransformer.save``, so that the files are the same whatever the library's version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rag.training.package_weights import PackageFile, Pieces

PROMPTS = {"query": "query: ", "passage": "passage: ", "document": "passage: "}
_PREFIX = "sentence_transformers.models."
_LINEAR = (
    ("q", "attention.self.query", "hidden", "hidden"),
    ("k", "attention.self.key", "hidden", "hidden"),
    ("v", "attention.self.value", "hidden", "hidden"),
    ("ao", "attention.output.dense", "hidden", "hidden"),
    ("fi", "intermediate.dense", "feed_forward", "hidden"),
    ("fo", "output.dense", "hidden", "feed_forward"),
)
_NORMS = (("aln", "attention.output.LayerNorm"), ("oln", "output.LayerNorm"))


def import_package(source: Path, out: Path) -> None:
    """Write the package's model as a sentence-transformers directory.

    Raises:
        SourceError: ``source`` is no weights file of the package.
    """
    import torch
    from transformers import BertConfig, BertModel

    file = PackageFile(source)
    shape = file.shape
    config = BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=shape.positions,
        type_vocab_size=shape.token_types,
        layer_norm_eps=float(np.float32(shape.epsilon)),
        pad_token_id=file.pieces.pad,
    )
    model = BertModel(config, add_pooling_layer=False)
    weights = {name: torch.from_numpy(value) for name, value in _weights(file).items()}
    missing = model.load_state_dict(weights, strict=False)
    left = [name for name in missing.missing_keys if not name.endswith(("position_ids", "token_type_ids"))]
    assert not left and not missing.unexpected_keys, (left, missing.unexpected_keys)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    write_tokenizer(unigram_tokenizer(file.pieces), out, shape.positions)
    write_pooling(out, shape.hidden, shape.positions)


def unigram_tokenizer(pieces: Pieces) -> dict[str, Any]:
    """Return the tokenizer.json of a sentencepiece unigram model in XLM-RoBERTa's frame."""
    special = {"<s>": pieces.bos, "<pad>": pieces.pad, "</s>": pieces.eos, "<unk>": pieces.unk, "<mask>": pieces.mask}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    start: dict[str, Any] = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    end: dict[str, Any] = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    first: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    second: dict[str, Any] = {"Sequence": {"id": "B", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": text,
                "single_word": False,
                "lstrip": text == "<mask>",
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for text, number in sorted(special.items(), key=lambda item: item[1])
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Nmt"},
                {"type": "NFKC"},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            ],
        },
        "pre_tokenizer": metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, first, end],
            "pair": [start, first, end, end, second, end],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [pieces.bos], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [pieces.eos], "tokens": ["</s>"]},
            },
        },
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": pieces.unk,
            # six digits keep every ranking of segmentations and a third of the file
            "vocab": [[text, round(float(score), 6)] for text, score in zip(pieces.texts, pieces.scores, strict=True)],
            "byte_fallback": False,
        },
    }


def write_tokenizer(tokenizer: dict[str, Any], out: Path, max_length: int) -> None:
    """Write ``tokenizer.json`` and the file that names the special tokens."""
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    (out / "tokenizer.json").write_text(text, encoding="utf-8")
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "cls_token": "<s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
            "model_max_length": max_length,
            "padding_side": "right",
            "truncation_side": "right",
            "model_input_names": ["input_ids", "attention_mask"],
        },
    )


def write_pooling(out: Path, dim: int, max_length: int) -> None:
    """Write what makes an encoder folder a sentence-transformers one: mean pooling, unit length, e5's prompts."""
    steps = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    write_modules(out, [(path, _PREFIX + kind) for path, kind in steps], PROMPTS)
    write_json(out / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    write_json(out / "1_Pooling" / "config.json", {"word_embedding_dimension": dim, "pooling_mode_mean_tokens": True})
    write_json(out / "2_Normalize" / "config.json", {})


def write_modules(out: Path, modules: Sequence[tuple[str, str]], prompts: Mapping[str, str]) -> None:
    """Write which modules, ``(path, class)``, make a sentence-transformers directory, and its prompts."""
    steps = [{"idx": n, "name": str(n), "path": path, "type": kind} for n, (path, kind) in enumerate(modules)]
    write_json(out / "modules.json", steps)
    write_json(
        out / "config_sentence_transformers.json",
        {"prompts": dict(prompts), "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def _weights(file: PackageFile) -> dict[str, np.ndarray[Any, Any]]:
    shape = file.shape
    width = {"hidden": shape.hidden, "feed_forward": shape.feed_forward}
    types = file.vector("emb.type").reshape(-1, shape.hidden)
    found = {
        "embeddings.word_embeddings.weight": file.matrix("emb.word", shape.vocabulary, shape.hidden),
        "embeddings.position_embeddings.weight": file.vector("emb.pos").reshape(shape.positions, shape.hidden),
        # only the first type is ever used; the file may hold that one alone
        "embeddings.token_type_embeddings.weight": np.repeat(types[:1], shape.token_types, 0),
        "embeddings.LayerNorm.weight": file.vector("emb.ln.w"),
        "embeddings.LayerNorm.bias": file.vector("emb.ln.b"),
    }
    for layer in range(shape.layers):
        there = f"encoder.layer.{layer}."
        for short, name, rows, columns in _LINEAR:
            found[there + name + ".weight"] = file.matrix(f"l{layer}.{short}.w", width[rows], width[columns])
            found[there + name + ".bias"] = file.vector(f"l{layer}.{short}.b")
        for short, name in _NORMS:
            found[there + name + ".weight"] = file.vector(f"l{layer}.{short}.w")
            found[there + name + ".bias"] = file.vector(f"l{layer}.{short}.b")
    return found


def write_json(path: Path, content: object) -> None:
    """Write a file of JSON, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
