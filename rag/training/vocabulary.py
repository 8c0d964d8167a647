"""A smaller vocabulary for the languages that a model serves; kept tokens embed as before.

Pruning a unigram tokenizer only takes pieces away: the best segmentation of a text stays the best as long as none of
its pieces is dropped, so that its tokens, and its vector, are the same as before.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from indexer.errors import ArgumentError

_ALWAYS = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]")
_SYMBOLS = regex.compile(r"▁?[\p{Common}\p{Inherited}]+\Z")
_COUNTED = regex.compile(r"[\p{Latin}\p{Cyrillic}]")
_LONE_LETTER = regex.compile(r"▁?[\p{Latin}\p{Cyrillic}\p{Greek}]\Z")


def token_shares(tokenizer: Any, weighted_texts: Iterable[tuple[str, float]]) -> dict[int, float]:
    """Return each token's share of one language's text, summing to 1.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``.
        weighted_texts: texts (or single words) with how often each stands; 1.0 for running text.
    """
    found: defaultdict[int, float] = defaultdict(float)
    batch: list[tuple[str, float]] = []
    for item in weighted_texts:
        batch.append(item)
        if len(batch) == 4096:
            _count(tokenizer, batch, found)
            batch = []
    _count(tokenizer, batch, found)
    total = sum(found.values()) or 1.0
    return {token: value / total for token, value in found.items()}


def choose_tokens(
    pieces: Sequence[str], shares: Sequence[Mapping[int, float]], size: int, special: Iterable[int]
) -> NDArray[np.int64]:
    """Return the ids to keep, ascending: specials, all Han, Kana and symbols, lone letters, then by share.

    A Latin or Cyrillic piece ranks by its largest share in any of the languages (and corpora), so that a language with
    little text at hand keeps its common pieces as a large one does.

    Raises:
        ArgumentError: ``size`` does not hold what is kept whatever its count.
    """
    kept = set(special)
    candidates = []
    for number, piece in enumerate(pieces):
        if _ALWAYS.search(piece) or _SYMBOLS.match(piece) or _LONE_LETTER.match(piece) or piece == "▁":
            kept.add(number)
        elif _COUNTED.search(piece):
            candidates.append(number)
    if len(kept) > size:
        raise ArgumentError("size", f"is {size}, but {len(kept)} tokens are kept whatever their count")
    rank = {number: max((share.get(number, 0.0) for share in shares), default=0.0) for number in candidates}
    counted = sorted((number for number in candidates if rank[number] > 0), key=lambda number: (-rank[number], number))
    kept.update(counted[: size - len(kept)])
    return np.array(sorted(kept), dtype=np.int64)


def prune_folder(source: Path, out: Path, keep: NDArray[np.int64]) -> None:
    """Write ``source`` (a unigram sentence-transformers directory) with the tokens of ``keep`` alone, in that order.

    Raises:
        ArgumentError: ``keep`` leaves out a special token, or the tokenizer is of another kind.
    """
    from safetensors.torch import load_file, save_file

    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    pruned = prune_tokenizer(tokenizer, keep)
    shutil.copytree(source, out, dirs_exist_ok=True)
    (out / "tokenizer.json").write_text(json.dumps(pruned, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    weights = load_file(source / "model.safetensors")
    name = next(key for key in weights if key.endswith("embeddings.word_embeddings.weight"))
    weights[name] = weights[name][keep].contiguous()
    (out / "model.safetensors").unlink()
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] = len(keep)
    config["pad_token_id"] = next(item["id"] for item in pruned["added_tokens"] if item["content"] == "<pad>")
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    np.save(out / "kept_tokens.npy", keep)


def prune_tokenizer(tokenizer: dict[str, Any], keep: NDArray[np.int64]) -> dict[str, Any]:
    """Return the tokenizer.json content with only the pieces of ``keep``, renumbered in that order.

    Raises:
        ArgumentError: ``keep`` leaves out a special token, or the tokenizer is no unigram model.
    """
    if tokenizer["model"]["type"] != "Unigram":
        raise ArgumentError("tokenizer", f"is {tokenizer['model']['type']}; only Unigram vocabularies are pruned")
    number = {int(old): new for new, old in enumerate(keep)}
    missing = [item["content"] for item in tokenizer["added_tokens"] if item["id"] not in number]
    if missing:
        raise ArgumentError("keep", f"leaves out the special tokens {', '.join(missing)}")
    vocabulary = tokenizer["model"]["vocab"]
    post = json.loads(json.dumps(tokenizer["post_processor"]))
    for item in post.get("special_tokens", {}).values():
        item["ids"] = [number[old] for old in item["ids"]]
    return {
        **tokenizer,
        "added_tokens": [{**item, "id": number[item["id"]]} for item in tokenizer["added_tokens"]],
        "post_processor": post,
        "model": {
            **tokenizer["model"],
            "unk_id": number[tokenizer["model"]["unk_id"]],
            "vocab": [vocabulary[int(old)] for old in keep],
        },
    }


def _count(tokenizer: Any, batch: list[tuple[str, float]], found: defaultdict[int, float]) -> None:
    encoded = tokenizer.encode_batch_fast([text for text, _ in batch], add_special_tokens=False)
    for (_, weight), one in zip(batch, encoded, strict=True):
        for token in one.ids:
            found[token] += weight
