"""What clinrag does, once: the operations behind both the routes and the commands."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from api.jobs import Outcome, Rejected
from api.posted import PostedNotes
from api.settings import Settings
from api.withdrawals import RawNote, WaitingJobs, WaitingNotes
from indexer.errors import (
    ClinragError,
    CollectionNotFoundError,
    DamagedError,
    EncoderMismatchError,
    EncoderUnavailableError,
    KeysError,
    StorageError,
    WriterBusyError,
)
from indexer.records import Note, RowError, Scope

if TYPE_CHECKING:
    from api.schemas import AnswerResponse, CollectionModel, SearchResponse
    from indexer.build import IndexReport, Progress
    from indexer.collection import Collection
    from indexer.encoders.encoder import Encoder
    from indexer.erasure import Erased
    from indexer.library import Library
    from indexer.store.asked import By
    from rag.generate import Generator
    from rag.search import LanguagePolicy, Mode


Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Question:
    """What search and ask have in common: a text, a collection, a scope, and how many passages."""

    text: str
    collection: str
    scope: Scope
    k: int = 10
    mode: Mode = "hybrid"
    language_policy: LanguagePolicy = "balanced"
    expand: bool = True


@dataclass(slots=True)
class _Loaded:
    """Things by name, each made once, whoever asks first.

    What is there already is had without a lock: making another takes seconds, of a collection that is repaired or
    deleted even longer, and no search may wait for that. Collections share a few locks by their names.
    """

    collections: dict[str, Collection] = field(default_factory=dict)
    encoders: dict[str, Encoder] = field(default_factory=dict)
    generators: dict[str, Generator] = field(default_factory=dict)
    encoder_lock: threading.Lock = field(default_factory=threading.Lock)
    generator_lock: threading.Lock = field(default_factory=threading.Lock)
    collection_locks: tuple[threading.Lock, ...] = field(
        default_factory=lambda: tuple(threading.Lock() for _ in range(64))
    )

    def collection_lock(self, name: str) -> threading.Lock:
        """Return the lock under which the collection of that name is opened, made or deleted."""
        return self.collection_locks[hash(name) % len(self.collection_locks)]

    def close_collection(self, name: str) -> None:
        """Forget an open collection; its lock is held."""
        known = self.collections.pop(name, None)
        if known is not None:
            known.close()


class Service:
    """Search, ask and index over one home folder. Thread safe.

    Open collections, encoders and generators are kept for the life of the service; a collection that another process
    deletes or makes anew is noticed at the next call.
    """

    def __init__(
        self,
        settings: Settings,
        library: Library,
        load_encoder: Callable[[str], Encoder],
        load_generator: Callable[[str, Encoder | None], Generator],
    ) -> None:
        self.settings = settings
        self.library = library
        self._load_encoder = load_encoder
        self._load_generator = load_generator
        self._loaded = _Loaded()

    # --- collections

    def create(self, name: str, encoder_name: str, *, encrypted: bool = False) -> Collection:
        """Make a collection for the vectors of an encoder.

        Raises:
            CollectionExistsError: the name is taken.
            KeysError: it is to be encrypted and no good master key is named.
            EncoderUnavailableError: the encoder is unknown or not on this machine.
        """
        spec = self.encoder(encoder_name).spec
        with self._loaded.collection_lock(name):
            created = self.library.create(name, encoder_name, spec, encrypted=encrypted)
            self._loaded.close_collection(name)  # of an earlier one, which another process deleted
            self._loaded.collections[name] = created
        return created

    def collection(self, name: str) -> Collection:
        """Return an open collection.

        Raises:
            CollectionNotFoundError: there is none of that name.
        """
        known = self._loaded.collections.get(name)
        if known is not None and known.present():
            return known
        with self._loaded.collection_lock(name):
            known = self._loaded.collections.get(name)
            if known is None or not known.present():
                self._loaded.close_collection(name)
                known = self._loaded.collections[name] = self.library.open(name)
            return known

    def let_go(self) -> None:
        """Close collections that another process deleted, or put others in the place of, before anybody asks for them.

        As long as they are open, their files keep their room on the disk and what stands in them.
        """
        for name, known in list(self._loaded.collections.items()):
            with suppress(ClinragError, OSError):  # Nobody can tell: whoever asks for it meets the same.
                if not known.present():
                    with self._loaded.collection_lock(name):
                        if self._loaded.collections.get(name) is known:
                            self._loaded.close_collection(name)

    def on(self, name: str, act: Callable[[Collection], Made]) -> Made:
        """Return what is done with a collection; it is done again where that was repaired or cut over meanwhile.

        Raises:
            CollectionNotFoundError: there is none of that name, or it was deleted meanwhile.
        """
        collection = self.collection(name)
        try:
            with _unless_replaced(collection):
                return act(collection)
        except (EncoderMismatchError, WriterBusyError):
            if collection.present():
                raise
        return self.on(name, act)

    def describe(self, name: str) -> CollectionModel:
        """Return what a collection holds, as both ways in show it.

        Raises:
            CollectionNotFoundError: there is none of that name.
        """
        from api.schemas import CollectionModel

        return CollectionModel.of(self.on(name, lambda collection: collection.info()))

    def describe_all(self, names: Iterable[str]) -> tuple[list[CollectionModel], list[str]]:
        """Return what these collections hold, and the names of those that cannot be read; one that is gone is left out.

        An encrypted one cannot be read without its keys.
        """
        described, damaged = [], []
        for name in names:
            try:
                described.append(self.describe(name))
            except CollectionNotFoundError:
                continue  # deleted since it was named
            except (DamagedError, KeysError, StorageError):
                damaged.append(name)
        return described, damaged

    def delete_collection(self, name: str, *, with_keys: bool = False) -> None:
        """Remove a collection with everything in it and what waits for it; its keys where that is asked for.

        Raises:
            CollectionNotFoundError: there is none of that name.
            ArgumentError: it has no keys, or another collection shares them; nothing was removed.
        """
        empty_jobs = WaitingJobs(self.settings.home).deleting(name)
        with self._loaded.collection_lock(name):
            self.library.delete(name, with_keys=with_keys)
            self._loaded.close_collection(name)  # Not before: where that is refused, others go on with it.
        empty_jobs()

    def open_or_create(self, name: str, encoder_name: str | None) -> Collection:
        """Return the collection, made with the given or the default encoder where it is absent.

        Raises:
            EncoderMismatchError: it is there and holds the vectors of another encoder.
        """
        try:
            found = self.collection(name)
        except CollectionNotFoundError:
            return self.create(name, encoder_name or self.default_encoder())
        if encoder_name is not None:
            found.check_encoder(self.encoder(encoder_name).spec)
        return found

    # --- encoders and generators

    def default_encoder(self) -> str:
        """Return the name of the encoder that new collections get."""
        from indexer.encoders.catalog import default_encoder_name

        return self.settings.encoder or default_encoder_name()

    def encoder(self, name: str) -> Encoder:
        """Return an encoder, loaded at the first call.

        Raises:
            EncoderUnavailableError: unknown, or not on this machine.
        """
        return _made_once(self._loaded.encoders, name, self._loaded.encoder_lock, lambda: self._load_encoder(name))

    def encoder_of(self, collection: Collection) -> Encoder:
        """Return the encoder that the collection's notes are stored with.

        Raises:
            EncoderUnavailableError: it is not on this machine.
            EncoderMismatchError: this machine's encoder of that name is not the collection's.
        """
        encoder = self.encoder(collection.encoder_name)
        collection.check_encoder(encoder.spec)
        return encoder

    def encoder_or_none(self, collection: Collection) -> Encoder | None:
        """Return the collection's encoder, or ``None`` where it is not here: the search says that it is degraded."""
        try:
            return self.encoder(collection.encoder_name)
        except EncoderUnavailableError:
            return None

    def generator(self, name: str | None, encoder: Encoder | None = None) -> Generator:
        """Return the generator of that name, made once an encoder; ``None`` is the first of the settings.

        Raises:
            ArgumentError: the name is not of the allowed form.
            MissingExtraError: its package is not installed.
            GeneratorError: the model cannot be set up.
        """
        wanted = name or self.settings.generators[0]
        own = encoder if ":" not in wanted else None  # what quotes compares sentences by it, once and for all
        key = wanted if own is None else f"{wanted} {own.spec.fingerprint}"
        return _made_once(
            self._loaded.generators, key, self._loaded.generator_lock, lambda: self._load_generator(wanted, own)
        )

    # --- search and ask

    def search(self, question: Question) -> SearchResponse:
        """Return the passages of a scope that match a query."""
        from api.schemas import SearchResponse
        from rag.search import SearchRequest, search

        request = SearchRequest(
            query=question.text,
            scope=question.scope,
            k=question.k,
            mode=question.mode,
            language_policy=question.language_policy,
            expand=question.expand,
        )

        def searched(collection: Collection) -> SearchResponse:
            encoder = None if question.mode == "lexical" else self.encoder_or_none(collection)
            return SearchResponse.model_validate(search(collection, encoder, request))

        return self.on(question.collection, searched)

    def ask(self, question: Question, generator: str | None = None) -> AnswerResponse:
        """Return an answer with its citations, or what was searched without finding one."""
        from api.schemas import AnswerResponse, ScopeModel
        from rag.answer import Answer, AnswerRequest, answer

        started = time.perf_counter()
        request = AnswerRequest(
            question=question.text, scope=question.scope, k=question.k, language_policy=question.language_policy
        )

        def answered(collection: Collection) -> Answer:
            encoder = self.encoder_or_none(collection)
            said = answer(collection, encoder, request, self.generator(generator, encoder))
            collection.check_present()  # A model takes its time: what was deleted meanwhile is in no answer.
            return said

        found = self.on(question.collection, answered)
        return AnswerResponse.model_validate(
            {
                **{name: getattr(found, name) for name in AnswerResponse.model_fields if hasattr(found, name)},
                "collection": question.collection,
                "scope": ScopeModel.model_validate(question.scope),
                "took_ms": round((time.perf_counter() - started) * 1e3, 3),
            }
        )

    # --- notes

    def index(
        self,
        collection: Collection,
        items: Iterable[Note | RowError],
        on_progress: Callable[[Progress], None] | None = None,
        withdrawn: Callable[[Note], bool] | None = None,
    ) -> IndexReport:
        """Store notes with their passages and vectors; what is stored already is skipped before it is embedded.

        Raises:
            CollectionNotFoundError: it was deleted meanwhile.
            EncoderMismatchError: this machine's encoder of that name is not the collection's.
            WriterBusyError: another process writes for longer than the timeout.
            StorageFullError: the disk is full; whole batches before that are stored.
        """
        from indexer.build import index_notes

        encoder = self.encoder_of(collection)
        with _unless_replaced(collection):
            return index_notes(
                collection,
                encoder,
                items,
                batch_notes=self.settings.batch_notes,
                on_progress=on_progress,
                writer_timeout_s=self.settings.writer_timeout_s,
                withdrawn=withdrawn,
            )

    def index_posted(
        self,
        name: str,
        notes: Sequence[RawNote],
        report: Callable[[Outcome], None] | None = None,
        stopping: threading.Event | None = None,
    ) -> Outcome:
        """Store notes that came as JSON objects, and return what became of each.

        Raises:
            CollectionNotFoundError, EncoderMismatchError, WriterBusyError, StorageFullError: as above.
        """
        n_stored = 0

        def stored(collection: Collection) -> Outcome:
            before = n_stored  # by an attempt that a cutover or a repair cut short; now they are there already
            if isinstance(notes, WaitingNotes) and notes.collection_id not in (None, collection.collection_id):
                raise CollectionNotFoundError(
                    f"collection {name!r} was deleted since, and another was made under its name"
                )
            overtaken = notes.overtaken_in(collection) if isinstance(notes, WaitingNotes) else None
            posted = PostedNotes(notes, stopping, overtaken)

            def on_progress(progress: Progress) -> None:
                nonlocal n_stored
                n_stored = before + progress.stored
                if report is not None:
                    skipped = max(0, progress.skipped - before)
                    report(Outcome(progress.done, n_stored, skipped, tuple(posted.refused)))

            withdrawn = notes.withdrawn if isinstance(notes, WaitingNotes) else None
            result = self.index(collection, posted, on_progress, withdrawn)
            rejected = tuple(
                Rejected(index, row.field, row.reason)
                for index, row in zip(result.positions, result.rejected, strict=True)
            )
            n_known = max(0, result.skipped - before)
            return Outcome(posted.given, before + result.stored, n_known, rejected, finished=posted.finished)

        return self.on(name, stored)

    def erase(self, name: str, by: By, subjects: Sequence[str]) -> Erased:
        """Erase notes by id, or all of one patient, from every file, and return the signed receipt.

        Raises:
            HeldError: a patient is under legal hold; nothing was erased.
            NoteNotFoundError: nothing of them is stored; nothing was erased.
            ErasurePendingError: readers or a writer did not end in time; it goes on when the collection is opened next.
        """
        return self.on(name, lambda collection: self.library.erase(collection, by, subjects))

    def close(self) -> None:
        """Close every collection."""
        for name in list(self._loaded.collections):
            with self._loaded.collection_lock(name):
                self._loaded.close_collection(name)


def _made_once(made: dict[str, Made], name: str, lock: threading.Lock, make: Callable[[], Made]) -> Made:
    found = made.get(name)
    if found is None:
        with lock:
            found = made.get(name)
            if found is None:
                found = made[name] = make()
    return found


@contextmanager
def _unless_replaced(collection: Collection) -> Iterator[None]:
    """Whatever a deletion, a repair or a cutover in the middle makes of files that are gone, say what happened."""
    try:
        yield
    except Exception as error:
        try:
            collection.check_present()
        except ClinragError as happened:
            raise happened from error
        raise
