"""Notes into a collection: check, skip what is known, cut, embed, commit. Idempotent, interruptible, bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field

from indexer.collection import PUBLISH_BEHIND, Collection
from indexer.embedding import Vectors, embedded, passages_of
from indexer.encoders.encoder import Encoder
from indexer.records import Note, RowError
from indexer.seen import SeenNotes
from indexer.store.embedded import MissingVectorsError
from indexer.store.stored import Committed, Prepared
from indexer.store.truth import content_hash, metadata_text
from indexer.times import now_us, period

WRITER_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an import is: records done (of ``total`` where it is known), and what became of them."""

    done: int
    total: int | None
    stored: int
    skipped: int
    rejected: int


@dataclass(slots=True)
class IndexReport:
    """What an import did. ``positions[i]`` is the place in the input of ``rejected[i]``, counted from 0."""

    stored: int = 0
    skipped: int = 0
    chunks: int = 0
    rejected: list[RowError] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Item:
    position: int
    note: Note
    content_hash: bytes


def index_notes(
    collection: Collection,
    encoder: Encoder,
    items: Iterable[Note | RowError],
    *,
    batch_notes: int = 64,
    on_progress: Callable[[Progress], None] | None = None,
    writer_timeout_s: float = WRITER_TIMEOUT_S,
    withdrawn: Callable[[Note], bool] | None = None,
) -> IndexReport:
    """Store the notes that are new or changed, and return what was done.

    Each batch is one durable transaction, so an import that is interrupted leaves whole batches and goes on where it
    stopped when it is run again. Encoding happens outside of transactions; the writer is held for a commit only.
    ``withdrawn`` is asked while the writer is held, so that a note that was erased while it waited is not stored.

    Raises:
        EncoderMismatchError: the collection was embedded with another encoder; nothing was read.
        WriterBusyError: another writer did not end within ``writer_timeout_s``.
        StorageFullError: the disk is full; the batches before are stored.
    """
    collection.check_encoder(encoder.spec)
    importer = _Import(collection, encoder, writer_timeout_s, withdrawn)
    total = len(items) if isinstance(items, Sized) else None
    batch: list[_Item] = []
    done = 0

    def flush() -> None:
        importer.store(batch)
        batch.clear()
        if importer.report.stored >= PUBLISH_BEHIND:
            collection.keep_up()
        if on_progress is not None:
            report = importer.report
            on_progress(Progress(done, total, report.stored, report.skipped, len(report.rejected)))

    for position, item in enumerate(items):
        done = position + 1
        accepted = importer.accept(position, item)
        if accepted is not None:
            batch.append(accepted)
        if len(batch) >= batch_notes:
            flush()
    flush()
    collection.publish_soon()
    return importer.report


class _Import:
    """One run: what it has seen, and what came of it."""

    def __init__(
        self,
        collection: Collection,
        encoder: Encoder,
        writer_timeout_s: float,
        withdrawn: Callable[[Note], bool] | None,
    ) -> None:
        self.report = IndexReport()
        self._collection = collection
        self._encoder = encoder
        self._timeout_s = writer_timeout_s
        self._withdrawn = withdrawn
        self._seen = SeenNotes()

    def accept(self, position: int, item: Note | RowError) -> _Item | None:
        """Return what is worth looking at: a sound record whose id is new in this input."""
        if isinstance(item, RowError):
            self._reject(position, item)
            return None
        problem = _problem(item)
        if problem is not None:
            self._reject(position, _row_error(item, *problem))
            return None
        digest = content_hash(item)
        before = self._seen.add(item.note_id, digest)
        if before is None:
            return _Item(position, item, digest)
        if before:
            self.report.skipped += 1
        else:
            reason = "occurs twice in this input, with different content; the first record was taken"
            self._reject(position, _row_error(item, "id", reason))
        return None

    def store(self, batch: Sequence[_Item]) -> None:
        """Store a batch in one transaction, without embedding what is known."""
        known = self._collection.known_contents(item.note.note_id for item in batch)
        fresh = [item for item in batch if known.get(item.note.note_id) != item.content_hash]
        self.report.skipped += len(batch) - len(fresh)
        if not fresh:
            return
        prepared = [self._prepared(item) for item in fresh]
        texts = dict(_texts(prepared))
        lacking = self._collection.unembedded(prepared)
        vectors = embedded(self._encoder, {key: text for key, text in texts.items() if key in lacking})
        kept, outcome = self._commit(prepared, texts, vectors)
        for index in sorted(set(range(len(fresh))).difference(kept)):
            reason = "was erased while it waited to be stored"
            self._reject(fresh[index].position, _row_error(fresh[index].note, "id", reason))
        self.report.stored += outcome.stored
        self.report.skipped += outcome.skipped
        self.report.chunks += outcome.chunks
        for refusal in outcome.refused:
            item = fresh[kept[refusal.index]]
            self._reject(item.position, _row_error(item.note, refusal.field, refusal.reason))

    def _commit(
        self, prepared: Sequence[Prepared], texts: dict[bytes, str], vectors: Vectors
    ) -> tuple[list[int], Committed]:
        """Store the batch and return which of it was still wanted, and what was done with that."""
        while True:
            try:
                with self._collection.writer(self._timeout_s) as writer:
                    kept = [
                        n for n, one in enumerate(prepared) if self._withdrawn is None or not self._withdrawn(one.note)
                    ]
                    return kept, writer.store([prepared[n] for n in kept], vectors)
            except MissingVectorsError as exc:
                # Another process deleted the last note with this text between our look and our commit.
                vectors |= embedded(self._encoder, {key: texts[key] for key in exc.hashes})

    def _prepared(self, item: _Item) -> Prepared:
        chunks, hashes = passages_of(self._encoder, item.note.text, item.note.language)
        return Prepared(item.note, item.content_hash, chunks, hashes)

    def _reject(self, position: int, error: RowError) -> None:
        self.report.rejected.append(error)
        self.report.positions.append(position)


def _texts(batch: Sequence[Prepared]) -> Iterator[tuple[bytes, str]]:
    for prepared in batch:
        for chunk, key in zip(prepared.chunks, prepared.hashes, strict=True):
            yield key, prepared.note.text[chunk.start : chunk.end]


def _problem(note: Note) -> tuple[str, str] | None:
    """Return the field and the reason why a note cannot be stored, ``None`` for a sound one."""
    if not note.note_id.strip():
        return "id", "is empty"
    texts = {
        "id": note.note_id,
        "text": note.text,
        "patient_id": note.patient_id,
        "encounter_id": note.encounter_id,
        "note_type": note.note_type,
        "language": note.language,
        "source": note.source,
        "appends": note.appends,
        "replaces": "".join(note.replaces),
    }
    for name, text in texts.items():
        if text is not None and ("\0" in text or not _encodable(text)):
            return name, "holds a NUL or a lone surrogate"
    for name, moment in (("authored_at", note.authored_at), ("stored_at", note.stored_at)):
        try:
            start = None if moment is None else period(moment)[0]
        except ValueError as exc:
            return name, str(exc)
        if name == "stored_at" and start is not None and start > now_us():
            return name, "is in the future"
    try:
        (metadata_text(note.metadata) or "").encode()
    except ValueError:
        return "metadata", "holds a value that JSON has no form for"
    return None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _row_error(note: Note, field: str, reason: str) -> RowError:
    where = note.origin
    return RowError(where.file if where else "", where.line if where else None, field, reason)
