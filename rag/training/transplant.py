"""A vocabulary of many languages on a body that has read one, for backbones that lack the other languages.

The donor gives tokenizer and neighbourhoods, the body keeps its own embeddings: a token that both have keeps the body's
row, so that a text cut into such tokens embeds as before; any other gets a row out of the shared ones, either their
mean weighted by how near they lie to it in the donor (FOCUS, Dobler & de Melo 2023) or the donor's row through a linear
map fitted on them (in the way of WECHSEL, Minixhofer et al. 2022). Pretraining should follow.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from indexer.errors import ArgumentError
from rag.training.settings import TransplantSettings
from rag.training.vocabulary import embeddings_name, piece_texts, write_renumbered

Floats = NDArray[np.float32]
_NO_EDGE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Common}\p{Inherited}]+\Z")
_ROLES = (("pad",), ("unk",), ("cls", "bos"), ("sep", "eos"), ("mask",))
_RIDGE = 1.0
_ROWS = 2048


def transplant(body: Path, donor: Path, out: Path, settings: TransplantSettings) -> dict[str, int]:
    """Write ``body`` with the donor's vocabulary; return how many tokens are ``shared`` and how many ``new``.

    Args:
        body: a sentence-transformers directory; all but its token embeddings stays as it is.
        donor: another one; only its tokenizer and token embeddings are read.
        out: where the result goes.
        settings: how rows of new tokens are made.

    Raises:
        ArgumentError: too few tokens are shared to make the others of, or the method is unknown.
    """
    from safetensors.torch import load_file, save_file
    from torch import from_numpy

    if settings.method not in {"similar", "map"}:
        raise ArgumentError("transplant.method", f"is {settings.method}; known are similar and map")
    weights, given = (load_file(folder / "model.safetensors") for folder in (body, donor))
    name = embeddings_name(weights)
    old: Floats = weights[name].float().numpy()  # (V, D)
    other: Floats = given[embeddings_name(given)].float().numpy()  # (W, E)
    content = json.loads((donor / "tokenizer.json").read_text(encoding="utf-8"))
    roles = _special_ids(body), _special_ids(donor)
    shared = _shared(json.loads((body / "tokenizer.json").read_text(encoding="utf-8")), content, roles)
    if len(shared) <= settings.neighbours:
        raise ArgumentError("transplant.donor", f"shares {len(shared)} tokens with the model; that is too few")
    count = len(piece_texts(content))
    rows = _rows(old, other[:count], shared, settings)  # (W, D)
    order = _order(count, roles)
    weights[name] = from_numpy(rows[order]).to(weights[name].dtype).contiguous()
    places = {int(number): place for place, number in enumerate(order)}
    special = {role: places[number] for role, number in roles[1].items()}
    write_renumbered(body, out, content, order, special, donor)
    (out / "model.safetensors").unlink()
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return {"shared": len(shared), "new": count - len(shared)}


def _rows(old: Floats, other: Floats, shared: dict[int, int], settings: TransplantSettings) -> Floats:
    """Return ``(W, D)``: the body's row of what is shared, a made one of what is not."""
    anchors = np.array(list(shared))
    known = old[list(shared.values())]
    rows = np.empty((len(other), old.shape[1]), dtype=np.float32)
    new = np.setdiff1d(np.arange(len(other)), anchors)
    if settings.method == "map":
        centre, target = other[anchors].mean(0), known.mean(0)
        given = other[anchors] - centre
        # ridge regression: few tokens are shared where scripts differ, and a donor may be wider than the body
        scale = _RIDGE * float(np.square(given).sum()) / given.shape[1]
        map_ = np.linalg.solve(given.T @ given + scale * np.eye(given.shape[1]), given.T @ (known - target))
        rows[new] = (other[new] - centre) @ map_ + target
    else:
        unit = other / np.maximum(np.linalg.norm(other, axis=1, keepdims=True), 1e-9)
        for start in range(0, len(new), _ROWS):
            part = new[start : start + _ROWS]
            near = unit[part] @ unit[anchors].T  # (b, shared)
            best = np.argpartition(-near, settings.neighbours - 1, axis=1)[:, : settings.neighbours]
            nearness = np.take_along_axis(near, best, 1) / settings.temperature
            weight = np.exp(nearness - nearness.max(1, keepdims=True))
            weight /= weight.sum(1, keepdims=True)
            rows[part] = np.einsum("bk,bkd->bd", weight, known[best])
    rows[anchors] = known
    return rows


def _shared(
    body: dict[str, Any], donor: dict[str, Any], roles: tuple[dict[str, int], dict[str, int]]
) -> dict[int, int]:
    """Return donor id -> body id of the tokens that both have: equal texts, and special tokens of one role."""
    special = [{int(item["id"]) for item in one["added_tokens"]} for one in (body, donor)]
    known: dict[str, int] = {}
    for number, text in enumerate(piece_texts(body)):
        if text and number not in special[0]:
            known.setdefault(_key(text), number)
    shared = {
        number: known[_key(text)]
        for number, text in enumerate(piece_texts(donor))
        if text and number not in special[1] and _key(text) in known
    }
    shared.update((roles[1][role], roles[0][role]) for role in roles[0].keys() & roles[1].keys())
    return shared


def _key(text: str) -> str:
    """Return what tells a token: where no spaces are written, it is the same at a word's beginning and inside."""
    inner = text.removeprefix("▁")
    return inner if inner and _NO_EDGE.match(inner) else text


def _order(count: int, roles: tuple[dict[str, int], dict[str, int]]) -> NDArray[np.int64]:
    """Return the donor's ids in their new order: padding keeps the body's number, from which RoBERTa counts positions.

    Raises:
        ArgumentError: the body's padding has a number that the donor's vocabulary does not reach.
    """
    order = np.arange(count, dtype=np.int64)
    ours, theirs = roles[0]["pad"], roles[1]["pad"]
    if ours >= count:
        raise ArgumentError("transplant.donor", f"has {count} tokens, the model's padding is number {ours}")
    order[[ours, theirs]] = order[[theirs, ours]]
    return order


def _special_ids(folder: Path) -> dict[str, int]:
    """Return the ids of a tokenizer's special tokens by role; ``cls`` is also what begins a text, ``sep`` ends it."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    found = {}
    for role, *others in _ROLES:
        for one in (role, *others):
            number = getattr(tokenizer, f"{one}_token_id", None)
            if number is not None:
                found[role] = int(number)
                break
    if "pad" not in found:
        raise ArgumentError("transplant", f"{folder.name} has a tokenizer without a padding token")
    return found
