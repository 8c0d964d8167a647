"""A smaller vocabulary for the languages that a model serves; kept tokens embed as before.

Pruning only takes pieces away, and each of the three kinds of tokenizer still cuts a text as before as long as none of
the pieces it was cut into is dropped: the best of a unigram model's segmentations stays the best, the longest WordPiece
that fits stays the longest, and of BPE's merges those that were applied are still the first that can be (the pieces
that a kept piece is merged from are kept with it). So its tokens, and its vector, are the same.
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
_BYTE = regex.compile(r"<0x[0-9A-F]{2}>\Z")
EMBEDDINGS = ("embeddings.word_embeddings.weight", "embeddings.tok_embeddings.weight")
# what a slow tokenizer is made of: it would bring the old numbers back
_OTHER_FILES = ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")


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

    Args:
        pieces: what each id stands for, as `piece_texts` gives them: ``▁`` before what begins a word.
        shares: of each language (and corpus), as `token_shares` gives them.
        size: how many ids to keep.
        special: ids that are kept whatever they are.

    Raises:
        ArgumentError: ``size`` does not hold what is kept whatever its count.
    """
    kept = set(special)
    candidates = []
    for number, piece in enumerate(pieces):
        is_kept = _ALWAYS.search(piece) or _SYMBOLS.match(piece) or _LONE_LETTER.match(piece) or _BYTE.match(piece)
        if is_kept or piece in {"▁", ""}:
            kept.add(number)
        elif _COUNTED.search(piece):
            candidates.append(number)
    if len(kept) > size:
        raise ArgumentError("size", f"is {size}, but {len(kept)} tokens are kept whatever their count")
    rank = {number: max((share.get(number, 0.0) for share in shares), default=0.0) for number in candidates}
    counted = sorted((number for number in candidates if rank[number] > 0), key=lambda number: (-rank[number], number))
    kept.update(counted[: size - len(kept)])
    return np.array(sorted(kept), dtype=np.int64)


def piece_texts(tokenizer: Mapping[str, Any]) -> list[str]:
    """Return what each id of a tokenizer.json stands for, in one notation: ``▁`` before what begins a word.

    A token that is only part of a character (byte-level BPE) has no text: it is empty.
    """
    model = tokenizer["model"]
    pieces = _pieces(tokenizer)
    if model["type"] == "WordPiece":
        prefix = model.get("continuing_subword_prefix") or "##"
        return [piece.removeprefix(prefix) if piece.startswith(prefix) else f"▁{piece}" for piece in pieces]
    if model["type"] == "BPE" and _is_byte_level(tokenizer):
        return [_decoded(piece) for piece in pieces]
    return pieces


def prune_folder(source: Path, out: Path, keep: NDArray[np.int64]) -> None:
    """Write ``source`` (a sentence-transformers directory) with the tokens of ``keep`` alone, in that order.

    What the tokens of ``keep`` are merged from (BPE) is kept as well, behind them.

    Raises:
        ArgumentError: ``keep`` leaves out a special token, or the tokenizer is of another kind.
    """
    from safetensors.torch import load_file, save_file

    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    keep = with_parts(tokenizer, keep)
    weights = load_file(source / "model.safetensors")
    name = embeddings_name(weights)
    weights[name] = weights[name][keep].contiguous()
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    number = {int(old): new for new, old in enumerate(keep)}
    ids = {key: value for key, value in config.items() if key.endswith("_token_id") and value in number}
    special = {key.removesuffix("_token_id"): number[value] for key, value in ids.items()}
    write_renumbered(source, out, tokenizer, keep, special)
    (out / "model.safetensors").unlink()
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    np.save(out / "kept_tokens.npy", keep)


def embeddings_name(weights: Mapping[str, Any]) -> str:
    """Return the name under which a checkpoint holds its token embeddings.

    Raises:
        ArgumentError: it holds none under a known name.
    """
    for key in weights:
        if key.endswith(EMBEDDINGS):
            return key
    raise ArgumentError("model", f"holds no token embeddings; they are known as {' or '.join(EMBEDDINGS)}")


def write_renumbered(
    source: Path,
    out: Path,
    tokenizer: dict[str, Any],
    keep: NDArray[np.int64],
    special: Mapping[str, int],
    names: Path | None = None,
) -> None:
    """Write all of ``source`` but its weights' new rows: ``tokenizer`` renumbered to ``keep``, and what goes with it.

    Args:
        source: the folder to copy.
        out: where it goes.
        tokenizer: the tokenizer.json content.
        keep: the ids to keep, in their new order.
        special: the new ids of special tokens by role (``pad``, ``cls``), for the model's configuration.
        names: the folder that names the special tokens, where it is not ``source``.
    """
    renumbered = prune_tokenizer(tokenizer, keep)
    shutil.copytree(source, out, dirs_exist_ok=True)
    for name in (*_OTHER_FILES, "special_tokens_map.json", "added_tokens.json"):
        (out / name).unlink(missing_ok=True)
    text = json.dumps(renumbered, ensure_ascii=False, separators=(",", ":"))
    (out / "tokenizer.json").write_text(text, encoding="utf-8")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    also = {"bos": "cls", "eos": "sep"}  # a model may call them either way
    for key in [key for key in config if key.endswith("_token_id")]:
        role = key.removesuffix("_token_id")
        role = role if role in special else also.get(role, role)
        if role in special and config[key] is not None:
            config[key] = special[role]
    _write(out / "config.json", {**config, "vocab_size": len(keep)})
    options = _read(source / "tokenizer_config.json")
    if names is not None:
        inner = {"model_max_length": options.get("model_max_length")} if "model_max_length" in options else {}
        options = {**_read(names / "tokenizer_config.json"), **inner}
    options["tokenizer_class"] = "PreTrainedTokenizerFast"  # another class would build its own out of the vocabulary
    options.pop("added_tokens_decoder", None)
    _write(out / "tokenizer_config.json", options)


def prune_tokenizer(tokenizer: dict[str, Any], keep: NDArray[np.int64]) -> dict[str, Any]:
    """Return the tokenizer.json content with only the pieces of ``keep``, renumbered in that order.

    Raises:
        ArgumentError: ``keep`` leaves out a special token, or the tokenizer is of another kind.
    """
    model = tokenizer["model"]
    if model["type"] not in {"Unigram", "WordPiece", "BPE"}:
        raise ArgumentError("tokenizer", f"is {model['type']}; Unigram, WordPiece and BPE vocabularies are pruned")
    number = {int(old): new for new, old in enumerate(keep)}
    missing = [item["content"] for item in tokenizer["added_tokens"] if item["id"] not in number]
    if missing:
        raise ArgumentError("keep", f"leaves out the special tokens {', '.join(missing)}")
    if model["type"] == "Unigram":
        pieces = model["vocab"]  # added tokens have numbers behind it
        changed = {"unk_id": number[model["unk_id"]], "vocab": [pieces[old] for old in keep if old < len(pieces)]}
    else:
        vocabulary = {piece: number[old] for piece, old in model["vocab"].items() if old in number}
        changed = {"vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1]))}
        if model["type"] == "BPE":
            merges = ((merge, _merged(merge)) for merge in model["merges"])
            changed["merges"] = [merge for merge, parts in merges if {*parts, "".join(parts)} <= vocabulary.keys()]
    return {
        **tokenizer,
        "added_tokens": [{**item, "id": number[item["id"]]} for item in tokenizer["added_tokens"]],
        "post_processor": _renumbered(tokenizer["post_processor"], number),
        "model": {**model, **changed},
    }


def with_parts(tokenizer: Mapping[str, Any], keep: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``keep`` and, behind it, all that its pieces are merged from; ``keep`` itself where nothing is merged."""
    model = tokenizer["model"]
    if model["type"] != "BPE":
        return keep
    halves: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for merge in model["merges"]:
        first, second = _merged(merge)
        halves[first + second].append((first, second))
    vocabulary: dict[str, int] = model["vocab"]
    kept = dict.fromkeys(int(number) for number in keep)
    names = {number: piece for piece, number in vocabulary.items()}
    open_ = [names[number] for number in kept if number in names]
    while open_:
        for parts in halves.get(open_.pop(), ()):
            for part in parts:
                if vocabulary[part] not in kept:
                    kept[vocabulary[part]] = None
                    open_.append(part)
    return np.array(list(kept), dtype=np.int64)


def _pieces(tokenizer: Mapping[str, Any]) -> list[str]:
    """Return the piece of each id, added tokens among them; a number that stands for nothing is empty."""
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):
        named = {number: str(piece) for number, (piece, _) in enumerate(vocabulary)}
    else:
        named = {int(number): str(piece) for piece, number in vocabulary.items()}
    named.update((int(item["id"]), str(item["content"])) for item in tokenizer["added_tokens"])
    return [named.get(number, "") for number in range(max(named) + 1)]


def _merged(merge: str | Sequence[str]) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    return '"ByteLevel"' in json.dumps([tokenizer.get("pre_tokenizer"), tokenizer.get("decoder")])


def _byte_letters() -> dict[str, int]:
    """Return the byte of each letter of byte-level BPE: printable ones stand for themselves (Radford et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}


_LETTERS = _byte_letters()


def _decoded(piece: str) -> str:
    try:
        text = bytes(_LETTERS[letter] for letter in piece).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return piece if any(letter not in _LETTERS for letter in piece) else ""
    return f"▁{text[1:]}" if text.startswith(" ") else text


def _renumbered(processor: Any, number: Mapping[int, int]) -> Any:
    """Return a post-processor with its ids renumbered, whatever its kind: templates, BERT's, RoBERTa's, several."""
    if not isinstance(processor, dict):
        return processor
    changed = dict(processor)
    for key, value in processor.items():
        if key == "special_tokens":
            changed[key] = {name: {**item, "ids": [number[old] for old in item["ids"]]} for name, item in value.items()}
        elif key in {"sep", "cls"}:
            changed[key] = [value[0], number[value[1]]]
        elif key == "processors":
            changed[key] = [_renumbered(one, number) for one in value]
    return changed


def _count(tokenizer: Any, batch: list[tuple[str, float]], found: defaultdict[int, float]) -> None:
    encoded = tokenizer.encode_batch_fast([text for text, _ in batch], add_special_tokens=False)
    for (_, weight), one in zip(batch, encoded, strict=True):
        for token in one.ids:
            found[token] += weight


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
