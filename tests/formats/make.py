"""Makes the kept file of today's format: ``python -m tests.formats.make``. Run once for each format, then never again.

A kept file is what an older clinrag wrote; making it anew with a newer one would prove nothing.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from indexer.build import index_notes
from indexer.collection import Collection
from indexer.encoders.encoder import HashingEncoder
from indexer.library import Library
from indexer.records import Note, Scope, Status
from indexer.store.schema import FORMAT_VERSION

HERE = Path(__file__).parent
NAME = "kept"


def notes() -> list[Note]:
    """Return notes that use every field there is, in several scripts."""
    return [
        Note("en-1", "HISTORY:\nChest pain since Monday.\n\nPLAN:\nWarfarin 5 mg daily.", "p1", "e1", "progress", "en"),
        Note("es-1", "Niega dolor torácico. Warfarina 5 mg al día.", "p1", "e2", "discharge", "es", "2024-03"),
        Note("zh-1", "患者否认胸痛。华法林每日5毫克。", "p2", language="zh", authored_at="2024-03-05"),
        Note(
            "ja-1",
            "胸痛なし。ワルファリン5mg毎日。",
            "p2",
            language="ja",
            metadata={"ward": "3B", "beds": 4, "icu": False},
        ),
        Note("ru-1", "Боли в груди нет. Варфарин 5 мг ежедневно.", "p3", language="ru", source="import.csv"),
        Note("en-2", "Corrected: warfarin 2.5 mg daily.", "p1", language="en", replaces=("en-1",)),
        Note("en-3", "Addendum: INR 2.4 today.", "p1", language="en", appends="en-2"),
        Note("en-4", "Note of another patient.", "p1", language="en", status=Status.ENTERED_IN_ERROR),
        Note("en-5", "To be deleted soon.", "p4", language="en"),
        Note("en-6", "First wording.", "p4", language="en", stored_at="2024-01-01T00:00:00Z"),
    ]


def answers(collection: Collection) -> dict[str, Any]:
    """Return what a collection answers, as JSON has it; nothing that a later format may add."""
    encoder = HashingEncoder()
    listed = collection.list_notes(None, 1000)
    texts = {
        f"{note.note_id} {n}": collection.note(note.note_id, n).text
        for note in listed
        for n in range(1, note.version + 1)
    }
    found: dict[str, Any] = {}
    for name, scope in {"all": Scope(), "patient": Scope(patient_id="p1"), "past": Scope(as_of="2024-06-01")}.items():
        view = collection.view(scope)
        terms, _ = view.search_terms("warfarin варфарин 胸痛", 10)
        vectors, scores = view.search_vectors(encoder.encode_queries(["warfarin 5 mg daily"])[0], 5)
        found[name] = {
            "rows": view.rows.tolist(),
            "terms": sorted(terms.tolist()),
            "vectors": vectors.tolist(),
            "scores": [round(float(score), 3) for score in scores],
            "passages": [
                [
                    p.chunk_id,
                    p.start,
                    p.end,
                    p.text,
                    p.section,
                    p.language,
                    list(p.replaces),
                    p.appends,
                    list(p.addenda),
                ]
                for p in view.passages(view.rows)
            ],
        }
    info = collection.info()
    return {
        "texts": texts,
        "found": found,
        "metadata": {note.note_id: dict(note.metadata) for note in listed},
        "info": [info.notes, info.versions, info.chunks, info.seq, info.fingerprint, info.first, info.last],
    }


def main() -> None:
    """Write the collection and its answers into the folder of this format."""
    folder = HERE / f"v{FORMAT_VERSION}"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        encoder = HashingEncoder()
        with Library(Path(home)).create(NAME, "hashing", encoder.spec) as collection:
            index_notes(collection, encoder, notes())
            collection.publish()
            collection.delete_notes(["en-5"])
            index_notes(collection, encoder, [Note("en-6", "Second wording, of warfarin.", "p4", language="en")])
        with Library(Path(home)).open(NAME) as collection:
            (folder / "answers.json").write_text(json.dumps(answers(collection), ensure_ascii=False, indent=1) + "\n")
        with tarfile.open(folder / "collection.tar.xz", "x:xz") as archive:
            archive.add(Path(home) / "collections" / NAME, NAME, filter=_unsigned)


def _unsigned(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out locks, and who made it."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return None if entry.name.endswith(".lock") else entry


if __name__ == "__main__":
    main()
