"""The collection that is damaged, and everything there is to ask of it."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from indexer.build import index_notes
from indexer.collection import Collection
from indexer.encoders.encoder import HashingEncoder
from indexer.errors import CollectionNotFoundError, DamagedError, NoteNotFoundError
from indexer.library import Library
from indexer.records import Note, Scope, Status
from tests.faults.plan import WORDS

NAME = "main"
GONE = "n5"
IDS = [f"n{number}" for number in range(60)]
MOMENT = "2024-06-15T00:00:00Z"
WRITES = ("index new", "delete", "index again")
AFTER_WRITES = ("find new", "listed after", "vectors after")
AFTER_ERASING = ("listed after erasing", "rows after erasing", "vectors after erasing")

Ask = Callable[[str, Callable[[], Any]], None]
"""Takes a question and what gives its answer."""


def make(folder: Path, variant: str) -> dict[str, Any]:
    """Make the reference: ``live`` is the collection, ``other/stale`` an older state of it, ``other/swap`` another."""
    home = folder / "live"
    encoder = HashingEncoder()
    with Library(home).create(NAME, "hashing", encoder.spec) as collection:
        index_notes(collection, encoder, _notes(1), batch_notes=20)
        collection.publish()
    shutil.copytree(home, folder / "other" / "stale")
    with Library(folder / "other" / "swap").create(NAME, "hashing", encoder.spec) as another:
        index_notes(another, encoder, list(_notes(3))[:40], batch_notes=20)
        another.publish()
    collection = Library(home).open(NAME)
    index_notes(collection, encoder, list(_notes(2))[:30], batch_notes=20)
    collection.publish()
    collection.delete_notes([GONE, "n17"])
    index_notes(collection, encoder, list(_notes(4))[40:50], batch_notes=5)
    if variant == "closed":
        collection.close()
        return {"made": True}
    # What a killed process leaves: the files as they are now, without the index of the log.
    shutil.copytree(home, folder / "killed")
    collection.close()
    shutil.rmtree(home)
    (folder / "killed").rename(home)
    for path in home.rglob("*-shm"):
        path.unlink()
    return {"made": True}


def _notes(edition: int) -> list[Note]:
    rng = random.Random(edition)
    notes = []
    for number, note_id in enumerate(IDS):
        language = rng.choice(list(WORDS))
        long = number % 9 == 0
        body = " ".join(rng.choices(WORDS[language].split(), k=900 if long else rng.randint(8, 60)))
        notes.append(
            Note(
                note_id=note_id,
                text=f"zq{edition}x{number}. {body}.",
                patient_id=f"p{number % 7}",
                encounter_id=f"e{number % 11}",
                note_type=("progress", "discharge", "nursing")[number % 3],
                language=language,
                authored_at=f"2024-0{1 + number % 9}-1{number % 10}",
                stored_at=f"2024-0{edition + 4}-01T00:00:{number:02d}Z",
                status=Status.ENTERED_IN_ERROR if number == 23 else Status.FINAL,
                replaces=(f"n{number - 1}",) if number % 19 == 3 else (),
                appends=f"n{number - 2}" if number % 13 == 4 else None,
                source=f"s{number % 4}",
                metadata={"ward": f"w{number % 5}", "edition": edition},
            )
        )
    return notes


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def ask_everything(home: Path, erasing: bool) -> dict[str, Any]:
    """Ask everything and return the answers by question."""
    heard = _Warnings()
    logging.getLogger("indexer").addHandler(heard)
    logging.getLogger("indexer").propagate = False
    answers: dict[str, Any] = {}

    def ask(question: str, work: Callable[[], Any]) -> None:
        try:
            answers[question] = json.loads(json.dumps(work()))
        except DamagedError:
            answers[question] = {"error": "DamagedError"}
        except Exception as exc:
            answers[question] = {"unclear": f"{type(exc).__name__}: {str(exc)[:120]}"}

    findings: list[str] = []
    try:
        collection = Library(home).open(NAME)
    except (DamagedError, CollectionNotFoundError):
        # A collection without its truth is not there; that is as clear as can be.
        return {"answers": {"open": {"error": "DamagedError"}}, "warnings": heard.texts, "findings": ["open"]}
    except Exception as exc:
        answers["open"] = {"unclear": f"{type(exc).__name__}: {str(exc)[:120]}"}
        return {"answers": answers, "warnings": heard.texts, "findings": []}
    _ask_reads(collection, ask)
    findings = [f"{found.where} {found.what}" for found in collection.verify()]
    _ask_writes(collection, ask)
    if erasing:
        _ask_erasing(Library(home), collection, ask)
    collection.close()
    sys.stderr.flush()
    return {"answers": answers, "warnings": heard.texts, "findings": findings}


def _ask_reads(collection: Collection, ask: Ask) -> None:
    encoder = HashingEncoder()
    scopes = {
        "all": Scope(),
        "patient": Scope(patient_id="p3"),
        "language": Scope(language=("es", "ru")),
        "type": Scope(note_type=("nursing",)),
        "dates": Scope(date_from="2024-03", date_to="2024-06"),
        "source": Scope(source=("s1",)),
        "metadata": Scope(metadata={"ward": "w2"}),
        "as of": Scope(as_of=MOMENT),
    }
    ask("info", lambda: _info(collection))
    for name, scope in scopes.items():
        ask(f"rows {name}", lambda scope=scope: collection.view(scope).rows.tolist())
        ask(f"coverage {name}", lambda scope=scope: repr(collection.view(scope).coverage))
        ask(f"passages {name}", lambda scope=scope: _passages(collection, scope))
        for words in ("warfarin 5 mg", "варфарин боль", "胸痛 发热", "zq2x7"):
            ask(f"terms {words} {name}", lambda scope=scope, words=words: _terms(collection, scope, words))
        query = encoder.encode_queries(["chest pain and fever"])[0]
        ask(f"vectors {name}", lambda scope=scope, query=query: _vectors(collection, scope, query))
    ask("vector bytes", lambda: _vector_bytes(collection))
    ask("list", lambda: _listed(collection))
    for note_id in [*IDS, "never"]:
        ask(f"note {note_id}", lambda note_id=note_id: _note(collection, note_id, None))
    for note_id in [*IDS[::3], "never"]:
        ask(f"first {note_id}", lambda note_id=note_id: _note(collection, note_id, 1))
        ask(f"text {note_id}", lambda note_id=note_id: _text(collection, note_id))
    ask("known", lambda: sorted((key, value.hex()) for key, value in collection.known_contents(IDS).items()))


def _ask_writes(collection: Collection, ask: Ask) -> None:
    encoder = HashingEncoder()
    again = list(_notes(4))[40:50]
    ask("index again", lambda: _indexed(collection, again))
    ask("index new", lambda: _indexed(collection, [Note(note_id="fresh", text="zqfresh. fever.", language="en")]))
    ask("find new", lambda: _terms(collection, Scope(), "zqfresh"))
    ask("delete", lambda: list(collection.delete_notes(["n8", "never"]).deleted))
    ask("listed after", lambda: [entry[0] for entry in _listed(collection)])
    query = encoder.encode_queries(["chest pain and fever"])[0]
    ask("vectors after", lambda: _vectors(collection, Scope(), query))


def _ask_erasing(library: Library, collection: Collection, ask: Ask) -> None:
    query = HashingEncoder().encode_queries(["chest pain and fever"])[0]
    ask("erase", lambda: library.erase(collection, "notes", ["n9", "n10"]).receipt.counts["notes"])
    ask("listed after erasing", lambda: [entry[0] for entry in _listed(collection)])
    ask("rows after erasing", lambda: collection.view().rows.tolist())
    ask("vectors after erasing", lambda: _vectors(collection, Scope(), query))


def _info(collection: Collection) -> Any:
    info = collection.info()
    languages = sorted(((code or "", count) for code, count in info.languages.items()))
    return [info.notes, info.versions, info.chunks, languages, info.encoder_name, info.first, info.last, info.seq]


def _passages(collection: Collection, scope: Scope) -> Any:
    view = collection.view(scope)
    return [hashlib.sha256(repr(passage).encode()).hexdigest() for passage in view.passages(view.rows)]


def _terms(collection: Collection, scope: Scope, words: str) -> Any:
    rows, scores = collection.view(scope).search_terms(words, 10)
    return [rows.tolist(), [f"{score:.4f}" for score in scores.tolist()]]


def _vectors(collection: Collection, scope: Scope, query: Any) -> Any:
    rows, scores = collection.view(scope).search_vectors(query, 10)
    return [rows.tolist(), [f"{score:.4f}" for score in scores.tolist()]]


def _vector_bytes(collection: Collection) -> str:
    view = collection.view()
    return hashlib.sha256(view.vectors(view.rows).tobytes()).hexdigest()


def _listed(collection: Collection) -> Any:
    found, after = [], None
    while page := collection.list_notes(after, 13):
        found += [(note.note_id, repr(note)) for note in page]
        after = page[-1].note_id
    return found


def _note(collection: Collection, note_id: str, version: int | None) -> str:
    try:
        return hashlib.sha256(repr(collection.note(note_id, version)).encode()).hexdigest()
    except NoteNotFoundError:
        return "not found"


def _text(collection: Collection, note_id: str) -> str:
    try:
        return hashlib.sha256(collection.view().note_text(note_id, 1).encode()).hexdigest()
    except NoteNotFoundError:
        return "not found"


def _indexed(collection: Collection, notes: list[Note]) -> Any:
    report = index_notes(collection, HashingEncoder(), notes)
    return [report.stored, report.skipped, len(report.rejected)]
