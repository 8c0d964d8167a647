"""Makes a kept home, of the code that is imported: ``python -m tests.formats.make_home FOLDER``. Run once a form.

That in ``home1`` was made by the code of commit 98076bb: what a home of the first day holds, and how its files look.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from api.jobs import JobRunner
from api.keys import KeyFile, KeyScope
from indexer.backup import backup
from indexer.build import index_notes
from indexer.collection import Collection
from indexer.encoders.encoder import HashingEncoder
from indexer.encryption import MasterKey
from indexer.library import Library
from indexer.records import Note, Scope
from indexer.reencoding import cutover, reencode
from indexer.store.failpoints import install

ENCODER, OTHER = HashingEncoder(48), HashingEncoder(64)
MASTER = "5a" * 32
PAST = "2024-06-01"
QUERY = "warfarin варфарин 胸痛"


class Stopped(BaseException):
    """The process ends here."""


def notes() -> list[Note]:
    """Return what each collection is begun with."""
    return [
        Note("n1", "Warfarin 5 mg daily since Monday.", "p1", language="en", stored_at="2024-01-01T00:00:00Z"),
        Note("n2", "Боли в груди нет. Варфарин отменён.", "p2", language="ru", note_type="progress"),
        Note("n3", "患者否认胸痛。", "p3", language="zh", authored_at="2024-03-05", metadata={"ward": 3}),
        Note("n4", "Zygomatic fracture after a fall from a unicycle.", "p4", language="en"),
        Note("n5", "Marmalade allergy, told by the neighbour.", "p5", language="en"),
        Note("n6", "Wrongly filed.", "p1", language="en"),
    ]


def answers(collection: Collection) -> dict[str, Any]:
    """Return what a collection answers, as JSON has it."""
    found: dict[str, Any] = {}
    for name, scope in {"all": Scope(), "patient": Scope(patient_id="p1"), "past": Scope(as_of=PAST)}.items():
        view = collection.view(scope)
        terms, _ = view.search_terms(QUERY, 10)
        encoder = ENCODER if collection.spec.dim == ENCODER.spec.dim else OTHER
        vectors, scores = view.search_vectors(encoder.encode_queries([QUERY])[0], 3)
        found[name] = {
            "texts": {f"{one.note_id} {one.version}": one.text for one in view.passages(view.rows)},
            "terms": sorted(one.note_id for one in view.passages(terms)),
            "vectors": [one.note_id for one in view.passages(vectors)],
            "scores": [round(float(score), 3) for score in scores],
        }
    return found


def fill(library: Library, name: str, *, encrypted: bool = False) -> Collection:
    """Return a collection with corrections, an addendum, a deletion and a hold, and its derived files."""
    collection = library.create(name, "hashing", ENCODER.spec, encrypted=encrypted)
    index_notes(collection, ENCODER, notes())
    changed = [
        Note("n1", "Warfarin 2.5 mg daily.", "p1", language="en", stored_at="2024-07-01T00:00:00Z"),
        Note("n7", "Addendum: INR 2.4.", "p1", language="en", appends="n1"),
        Note("n8", "Corrects what was filed wrongly.", "p1", language="en", replaces=("n6",)),
    ]
    index_notes(collection, ENCODER, changed)
    collection.publish()
    index_notes(collection, ENCODER, [Note("n9", "Comes and goes.", "p2", language="en")])
    collection.delete_notes(["n9"])
    collection.hold("p3", "case 12")
    return collection


def make(home: Path) -> dict[str, Any]:
    """Fill a home, and return what its collections answer and what was told once."""
    master = home / "master.key"
    master.write_text(MASTER + "\n")
    library = Library(home, master=MasterKey(file=master))
    expected: dict[str, Any] = {}
    for name in ("plain", "sealed"):
        with fill(library, name, encrypted=name == "sealed") as collection:
            backup(collection, home / f"{name}.backup")
            library.erase(collection, "patient", ["p4"])
            backup(collection, home / f"{name}-2.backup")
            index_notes(collection, ENCODER, [Note("n10", "Readmitted with chest pain.", "p4", language="en")])
            backup(collection, home / f"{name}-3.backup", since=home / f"{name}-2.backup")
            library.erase(collection, "notes", ["n5"])
            expected[name] = answers(collection)
    with fill(library, "changing") as collection:
        reencode(collection, "wide", OTHER)
        index_notes(collection, ENCODER, [Note("late", "Came since.", "p2", language="en")])
        collection.delete_notes(["n2"])
        expected["changing"] = answers(collection)
    with fill(library, "changed") as collection:
        reencode(collection, "wide", OTHER)
        cutover(collection, lambda: OTHER)
    with library.open("changed") as collection:
        index_notes(collection, OTHER, [Note("late", "Came since.", "p2", language="en")])
        expected["changed"] = answers(collection)
    with fill(library, "pending") as collection:
        install(_stop_at("erase.dropped"))
        try:
            library.erase(collection, "patient", ["p4"])
        except Stopped:
            install(None)
    _, secret = KeyFile(home).add("ward", [KeyScope.WRITE])
    posted = [{"id": "posted", "text": "Waits to be stored.", "patient_id": "p2"}]
    job = JobRunner(home, lambda *_: None, 10).submit("plain", posted)  # type: ignore[arg-type,return-value]
    return {"answers": expected, "key": secret, "job": job, "posted": posted}


def _stop_at(name: str) -> Any:
    def stop(reached: str) -> None:
        if reached == name:
            raise Stopped

    return stop


def main() -> None:
    """Write the home and what it answers into a folder."""
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        told = make(home)
        (folder / "told.json").write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n")
        with tarfile.open(folder / "home.tar.xz", "x:xz") as archive:
            archive.add(home, "home", filter=_unsigned)


def _unsigned(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out locks, and who made it."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return None if entry.name.endswith(".lock") or entry.name.endswith("/lock") else entry


if __name__ == "__main__":
    main()
