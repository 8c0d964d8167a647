"""Small collections: notes whose sentences are chunks, embedded by a few letters. No model, no language rules."""

from __future__ import annotations

import re

import numpy as np

from indexer.library import Library
from indexer.records import Chunk, EncoderSpec, Note, Status
from indexer.store import failpoints
from indexer.store.stored import Prepared
from indexer.store.truth import content_hash, text_hash

DIM = 8
SPEC = EncoderSpec("letters", "0" * 64, "none", "", "", DIM, True, 10_000)


def vector(text):
    """Return a unit vector of how often some letters occur, the same on every machine."""
    counts = np.array([1 + text.casefold().count(letter) for letter in "aeiounrs"], np.float32)
    return counts / np.linalg.norm(counts)


class LetterEncoder:
    """An encoder that counts its calls and texts."""

    spec = SPEC
    max_tokens = 200

    def __init__(self):
        self.embedded = []

    def encode_queries(self, texts):
        return np.array([vector(text) for text in texts], np.float32).reshape(len(texts), DIM)

    def encode_passages(self, texts):
        self.embedded += texts
        return self.encode_queries(texts)

    def token_spans(self, texts):
        found = [[match.span() for match in re.finditer(r"\w+|[^\w\s]", text)] for text in texts]
        return [np.array(spans, np.int64).reshape(-1, 2) for spans in found]


class WordEncoder:
    """Another space than the letters', and another tokenizer: few words fit into a chunk."""

    spec = EncoderSpec("words", "1" * 64, "none", "", "", 16, True, 10_000)
    max_tokens = 6

    def __init__(self):
        self.embedded = []

    def encode_queries(self, texts):
        rows = np.ones((len(texts), 16), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in re.findall(r"\w+", text.casefold()):
                row[sum(map(ord, word)) % 16] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def encode_passages(self, texts):
        self.embedded += texts
        return self.encode_queries(texts)

    def token_spans(self, texts):
        return [
            np.array([match.span() for match in re.finditer(r"\S+", text)], np.int64).reshape(-1, 2) for text in texts
        ]


def note(note_id, text="Pain in the chest.", **fields):
    """Return a note; ``stored_at`` may be a small number: a second of 2020."""
    moment = fields.get("stored_at")
    if isinstance(moment, int):
        fields["stored_at"] = second(moment)
    return Note(note_id, text, **{"language": "en", "status": Status.FINAL, **fields})


def second(n):
    """Return second ``n`` of 2020 as a time."""
    return f"2020-01-01T00:{n // 60:02}:{n % 60:02}.000000Z"


def prepared(one, languages=(None,), sections=(None,)):
    """Return the note cut at its full stops; languages and sections take turns where the note names no language."""
    chunks = []
    for match in re.finditer(r"\S[^.]*\.?", one.text):
        n = len(chunks)
        language = one.language or languages[n % len(languages)]
        section = sections[n % len(sections)]
        chunks.append(Chunk(n, match.start(), match.start() + len(match.group().rstrip()), language, section, section))
    hashes = tuple(text_hash(one.text[chunk.start : chunk.end]) for chunk in chunks)
    return Prepared(one, content_hash(one), tuple(chunks), hashes)


def store(collection, *notes, **options):
    """Store notes in one batch and return what was done."""
    batch = [prepared(one, **options) for one in notes]
    texts = {
        key: one.note.text[chunk.start : chunk.end]
        for one in batch
        for chunk, key in zip(one.chunks, one.hashes, strict=True)
    }
    with collection.writer() as writer:
        return writer.store(batch, {key: vector(text).astype(np.float16) for key, text in texts.items()})


def new(folder, name="ward"):
    """Return a new collection under a folder."""
    return Library(folder).create(name, "letters", SPEC)


def shown(collection, scope=None):
    """Return which note versions a scope shows, as ``{note_id: version}``."""
    view = collection.view(scope)
    return {passage.note_id: passage.version for passage in view.passages(view.rows)}


def at(point, act):
    """Have something done once when a failpoint is reached."""

    def reached(name):
        if name == point:
            failpoints.install(None)
            act()

    failpoints.install(reached)
