"""From the names on the command line to systems that can be evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.systems import DenseSystem, FusedSystem, LexicalSystem, System
from indexer.encoders.catalog import load_encoder
from indexer.encoders.encoder import Encoder
from indexer.errors import ArgumentError
from indexer.store.postings import PostingsIndex
from indexer.text.analysis import analyze, analyze_query

CORRECTIONS = ("mean", "whiten")


def build_systems(names: Sequence[str], *, max_tokens: int = 256) -> list[System]:
    """Return one system a name; encoders are loaded once.

    ``bm25``; an encoder (catalog name, folder or hub id); an encoder with ``+mean`` or ``+whiten`` (corrected
    vectors); ``hybrid:`` before an encoder (fused with BM25).

    Raises:
        ArgumentError: a name is given twice, or its correction is unknown.
        EncoderUnavailableError: an encoder is not on this machine.
    """
    if len(set(names)) < len(names):
        raise ArgumentError("systems", "name one system twice")
    loaded: dict[str, Encoder] = {}

    def encoder(name: str) -> Encoder:
        if name not in loaded:
            loaded[name] = load_encoder(name)
        return loaded[name]

    return [_build(name, encoder, max_tokens) for name in names]


def _build(name: str, encoder: object, max_tokens: int) -> System:
    assert callable(encoder)
    if name == "bm25":
        return LexicalSystem("bm25", PostingsIndex, analyze, analyze_query)
    if name.startswith("hybrid:"):
        rest = name.removeprefix("hybrid:")
        parts = [_build("bm25", encoder, max_tokens), _build(rest, encoder, max_tokens)]
        return FusedSystem(f"hybrid-{_label(rest)}", parts)
    base, plus, correction = name.partition("+")
    if plus and correction not in CORRECTIONS:
        raise ArgumentError("systems", f"'{correction}' is no correction; there are {', '.join(CORRECTIONS)}")
    return DenseSystem(_label(name), encoder(base), max_tokens=max_tokens, correction=correction or None)


def _label(name: str) -> str:
    return Path(name).name if "/" in name else name
