"""From the names on the command line to systems that can be evaluated."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from eval.judged import Text
from eval.systems import DenseSystem, Find, FusedSystem, LexicalSystem, SearchSystem, System
from indexer.encoders.catalog import load_encoder
from indexer.encoders.encoder import Encoder
from indexer.errors import ArgumentError
from indexer.store.postings import PostingsIndex
from indexer.text.analysis import analyze, analyze_query

if TYPE_CHECKING:
    from indexer.collection import Collection

CORRECTIONS = ("mean", "whiten", "int8", "binary")
POLICIES = ("balanced", "any")

LoadEncoder = Callable[[str], Encoder]


def build_systems(names: Sequence[str], *, max_tokens: int = 256) -> list[System]:
    """Return one system a name; encoders are loaded once.

    ``bm25``; an encoder (catalog name, folder or hub id); an encoder with ``+mean`` or ``+whiten`` (corrected
    vectors), ``+int8``, ``+binary`` or ``+128`` (rounded vectors, or so many of their dimensions); ``hybrid:`` before
    an encoder (fused with BM25); ``search:`` before an encoder (a collection's own search, languages balanced; ``+any``
    takes scores as they are).

    Raises:
        ArgumentError: a name is given twice, or its correction is unknown.
        EncoderUnavailableError: an encoder is not on this machine.
    """
    if len(set(names)) < len(names):
        raise ArgumentError("systems", "name one system twice")
    if not all(names):
        raise ArgumentError("systems", "hold an empty name; write names with one comma between them")
    loaded: dict[str, Encoder] = {}

    def encoder(name: str) -> Encoder:
        if name not in loaded:
            loaded[name] = load_encoder(name)
        return loaded[name]

    searched = _Searched(encoder)
    return [_build(name, encoder, searched, max_tokens) for name in names]


def _build(name: str, encoder: LoadEncoder, searched: _Searched, max_tokens: int) -> System:
    if name == "bm25":
        return LexicalSystem("bm25", PostingsIndex, analyze, analyze_query)
    if name.startswith("hybrid:"):
        rest = name.removeprefix("hybrid:")
        parts = [_build(one, encoder, searched, max_tokens) for one in ("bm25", rest)]
        return FusedSystem(f"hybrid-{_label(rest)}", parts)
    if name.startswith("search:"):
        return searched.system(name.removeprefix("search:"))
    base, plus, correction = name.partition("+")
    loaded = encoder(base)
    if plus and correction not in CORRECTIONS and not _is_width(correction, loaded.spec.dim):
        known = ", ".join(CORRECTIONS)
        raise ArgumentError("systems", f"'{correction}' is no correction; there are {known}, or dimensions to keep")
    return DenseSystem(_label(name), loaded, max_tokens=max_tokens, correction=correction or None)


class _Searched:
    """Collections of corpora in a folder that goes with the process, each filled once for all policies."""

    def __init__(self, load: LoadEncoder) -> None:
        self._load = load
        self._home: Path | None = None
        self._filled: dict[tuple[str, tuple[str, ...]], Collection] = {}

    def system(self, name: str) -> System:
        """Return the search with an encoder, ``ENCODER`` or ``ENCODER+POLICY``."""
        from rag.search import MAX_K, MAX_QUERY_CHARS, LanguagePolicy, SearchRequest, search

        encoder_name, _, given = name.partition("+")
        if given not in ("", *POLICIES):
            raise ArgumentError("systems", f"'{given}' is no language policy; there are {', '.join(POLICIES)}")
        policy: LanguagePolicy = "any" if given == "any" else "balanced"
        encoder = self._load(encoder_name)

        def search_in(corpus: Sequence[Text]) -> Find:
            collection = self._collection(encoder_name, encoder, corpus)

            def find(query: str, k: int) -> Mapping[str, float]:
                request = SearchRequest(query[:MAX_QUERY_CHARS], k=min(k, MAX_K), language_policy=policy)
                hits = search(collection, encoder, request).hits if query.strip() else ()
                notes = dict.fromkeys(hit.note_id for hit in hits)
                # scores tie, and a user reads the hits in the search's own order
                return {note: 1.0 / rank for rank, note in enumerate(notes, 1)}

            return find

        label = f"search-{_label(encoder_name)}" + ("" if policy == "balanced" else f"-{policy}")
        facts = {"fingerprint": encoder.spec.fingerprint, "language_policy": policy, "mode": "hybrid"}
        return SearchSystem(label, search_in, facts)

    def _collection(self, name: str, encoder: Encoder, corpus: Sequence[Text]) -> Collection:
        from indexer.build import index_notes
        from indexer.library import Library
        from indexer.records import Note

        key = (name, tuple(passage.text_id for passage in corpus))
        if key not in self._filled:
            if self._home is None:
                self._home = Path(mkdtemp(prefix="clinrag-eval-"))
                weakref.finalize(self, shutil.rmtree, self._home, ignore_errors=True)
            library = Library(self._home)
            filled = library.create(f"corpus-{len(self._filled)}", name, encoder.spec)
            # Each passage is a patient of its own, so that no two are joined as copies.
            notes = [
                Note(passage.text_id, passage.text, language=passage.language or None, patient_id=passage.text_id)
                for passage in corpus
            ]
            index_notes(filled, encoder, notes)
            self._filled[key] = filled
        return self._filled[key]


def _is_width(text: str, dim: int) -> bool:
    return text.isdecimal() and 1 <= int(text) <= dim


def _label(name: str) -> str:
    return Path(name).name if "/" in name else name
