"""The copy of the truth in memory that searches run on: it follows the change log and keeps itself small.

Nothing is loaded before it is asked for. From then on the copy is kept current by a thread of its own, and by the
writers of this process, who hand over what they committed; a search only waits for what was committed before it began
and is not here yet. What came since the generation on disk lies beside it as an overlay; when that has grown large, a
new generation is written in the background and the copy begins anew from it.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, Engine

from indexer.errors import ClinragError, WriterBusyError
from indexer.store import log, truth
from indexer.store.background import Attendant, Errand, pause
from indexer.store.cipher import cipher_of
from indexer.store.columns import Columns
from indexer.store.file_cipher import FileCipher
from indexer.store.held import EXACT_CHUNKS, Erased, Held, Identity, analysed
from indexer.store.lock import exclusive
from indexer.store.mending import MendedVectors
from indexer.store.postings import PostingsIndex
from indexer.store.publishing import Frozen, write_generation
from indexer.store.selection import everything
from indexer.store.snapshots import DERIVED, Snapshots
from indexer.store.sqlite import Watch, cursor_of, read_cursor, read_transaction
from indexer.store.vectors import VectorIndex
from indexer.text.memory import forget

WORTH_KEEPING = 2000
"""So many changes without a generation on disk are worth one; a searched collection gets it while it is used."""

OVERLAY_PART = 4
"""... and so is this part of all changes, where that is more: the larger a collection, the rarer."""

REBUILD_TIMEOUT_S = 30.0
HANDED_TIMEOUT_S = 0.05
"""A writer that cannot hand over within this time leaves it to the next search."""

logger = logging.getLogger(__name__)


class Moment(NamedTuple):
    """What a reader works on: the columns and the change number they stand at."""

    columns: Columns
    seq: int


class Replica:
    """Follows one collection. Thread safe.

    Transactions are begun while the lock is held, so each sees at least what the one before saw.
    """

    def __init__(self, engine: Engine, path: Path, identity: Identity) -> None:
        """Follow the truth at ``path``; derived files lie beside it."""
        self._engine = engine
        self._identity = identity
        cipher = cipher_of(engine)
        self._sealed = cipher is not None
        self._snapshots = Snapshots(path.parent / DERIVED, None if cipher is None else FileCipher(cipher.keyring))
        self._publish_lock = path.parent / "derived.lock"
        self._lock = threading.RLock()
        self._watch = Watch(path, identity.name)
        self._held: Held | None = None
        self._tried_seq = 0
        self._coming: int | None = None
        self._mended = MendedVectors(self._index, self._lose_vectors)
        self._attendant = Attendant(self, f"follows {identity.name}")
        self._errand = Errand(f"keeps {identity.name}")

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._identity.dim

    def moment(self) -> Moment:
        """Return the newest state that anybody was told of, whichever process committed it."""
        with self._lock:
            first = self._held is None
            held = self._current()
            moment = Moment(held.columns, held.seq)
        self._attendant.start()
        if first:
            self._mend()
        return moment

    def vectors(self) -> VectorIndex:
        """Return the vector index; it holds at least the rows of every moment given out before."""
        self._index()
        return self._mended

    def _index(self) -> VectorIndex:
        with self._lock:
            if self._held is not None and self._held.vectors is not None:
                return self._held.vectors
            with read_transaction(self._engine) as connection:
                loaded = self._advanced(connection).load_vectors(connection)
        self._mend()
        return loaded

    def _lose_vectors(self, index: VectorIndex, file: str) -> None:
        """Let go of an index that met a damaged file, and of that generation: the next one comes from the truth."""
        with self._lock:
            if self._held is not None and self._held.vectors is index:
                self._held.lose_vectors(file)

    def lexical(self) -> PostingsIndex:
        """Return the lexical index; it holds at least the rows of every moment given out before."""
        with self._lock:
            if self._held is not None and self._held.lexical is not None:
                return self._held.lexical
            with read_transaction(self._engine) as connection:
                loaded = self._with_terms(connection)
        self._mend()
        return loaded

    def keep_up(self) -> None:
        """Take in what was committed, terms included, so that publishing after a long import has little left to do."""
        with self._lock, read_transaction(self._engine) as connection:
            self._with_terms(connection)

    def listens(self, seq: int) -> bool:
        """Say whether a writer of this process should hand over what it commits behind a change."""
        held = self._held
        if held is None or held.seq != seq:
            return False
        self._coming = seq
        return True

    def expect_nothing(self) -> None:
        """Look at the truth again from now on."""
        self._coming = None

    def take(self, before: int, batch: Callable[[], log.Batch]) -> None:
        """Take in what a writer of this process committed behind a change just now; it still holds the writer lock.

        Where that cannot be done at once, the next search finds it in the truth like anybody's.
        """
        try:
            handed, held = batch(), self._held
            if held is not None and held.lexical is not None:
                handed = handed._replace(page=analysed(handed.page))  # The longest part: searches go on meanwhile.
            if self._lock.acquire(timeout=HANDED_TIMEOUT_S):
                try:
                    self._take(before, handed)
                finally:
                    self._lock.release()
        except Exception as exc:
            self._forget()  # What was committed is committed: the next search reads all of it.
            logger.warning("collection %r is loaded anew (%s)", self._identity.name, type(exc).__name__)

    def _take(self, before: int, handed: log.Batch) -> None:
        held = self._held
        if held is None or held.seq != before:
            return
        # Nobody else commits changes while the writer lock is held: the look sees this commit and no other.
        self._watch.moved()
        if held.take(handed):
            self._settle_if_due(held)
        else:
            self._watch.reset()

    def attend(self) -> bool:
        """Take in what was committed, before somebody asks for it; say whether there was anything."""
        try:
            with self._lock:
                if self._held is None or self._is_coming(self._held) or not self._watch.moved():
                    return False
                with read_cursor(self._engine) as cursor:
                    columns = self._followed(cursor, self._held).columns
            # Every search of this moment needs it.
            everything(columns, None)
        except Erased:
            return True  # Loaded anew when somebody searches, not before.
        except (OSError, ClinragError) as exc:
            # Whoever searches next meets the same, and is told.
            logger.debug("collection %r was not followed: %s", self._identity.name, exc)
            return False
        return True

    def plan(self, n_rows: int) -> str:
        """Return how a search among so many rows goes: ``exact`` or ``approximate``."""
        if n_rows <= EXACT_CHUNKS:
            return "exact"
        plan = getattr(self._index(), "plan", None)
        return "exact" if plan is None else str(plan(n_rows))

    def behind(self) -> tuple[int, int]:
        """Return how many changes lie behind the newest generation on disk, and how many there are."""
        with read_transaction(self._engine) as connection:
            end = truth.last_change(connection).seq
        return end - self._published_seq(), end

    def publish(self) -> bool:
        """Write a generation of the newest state; ``False`` where another process is just doing so."""
        self._errand.wait()
        published = self._publish_unless_busy(lambda: None)
        self._begin_anew()
        return published

    def publish_soon(self) -> None:
        """Write a generation in the background, where nothing stands against it; `close` waits for it."""
        self._errand.start(self._settle)

    def rebuild(self, terms: PostingsIndex | None = None) -> None:
        """Throw away what is derived, in memory and on disk, and make it again from the truth.

        But for the terms of kept chunks where ``terms`` has them: to analyse every text again is nearly all of it. What
        only removed chunks had is not written.

        Raises:
            WriterBusyError: another process is writing derived files and does not end.
        """
        forget()
        what = f"a snapshot of collection {self._identity.name!r}"
        with exclusive(self._publish_lock, what, timeout_s=REBUILD_TIMEOUT_S):
            with self._lock:
                self._forget()
                self._snapshots.clear()
                if terms is not None:
                    with read_transaction(self._engine) as connection:
                        self._advanced(connection).keep_terms(terms)
            self._publish(lambda: None)
        self._begin_anew()

    @contextmanager
    def still(self) -> Iterator[None]:
        """Follow nothing for the block: a log that nobody reads can be cut to nothing."""
        with self._lock:
            yield

    def close(self) -> None:
        """Let go of everything; a generation that is being written is finished before."""
        self._errand.close()
        self._attendant.close()
        with self._lock:
            self._forget()
            self._watch.close()

    def _forget(self) -> None:
        with self._lock:
            self._held = None
            self._watch.reset()

    def _current(self) -> Held:
        if self._held is not None and self._is_coming(self._held):
            return self._held
        if not self._watch.moved() and self._held is not None:
            return self._held
        if self._held is not None:
            with suppress(Erased), read_cursor(self._engine) as cursor:
                return self._followed(cursor, self._held)
        with read_transaction(self._engine) as connection:
            return self._advanced(connection)

    def _is_coming(self, held: Held) -> bool:
        """Say whether a writer of this process is about to hand over all that may lie behind what is held.

        It holds the writer lock, so nobody else commits, and whoever called it was not told yet: to read the same from
        the truth beside it would only cost a search the time.
        """
        return self._coming == held.seq

    def _advanced(self, connection: Connection) -> Held:
        """Return what is held, as new as the connection sees; loaded where nothing is, or where some was erased."""
        if self._held is not None:
            with suppress(Erased):
                return self._followed(cursor_of(connection), self._held)
        self._held = Held.load(connection, self._snapshots, self._identity)
        return self._held

    def _followed(self, cursor: sqlite3.Cursor, held: Held) -> Held:
        try:
            held.follow(cursor, cipher_of(self._engine))
        except Erased:
            # Terms and references of what was erased may still be in there, and would be published again.
            logger.debug("collection %r is loaded anew after an erasure", self._identity.name)
            self._forget()
            forget()
            raise
        except BaseException:
            # Half a step was taken: the next reader starts over.
            self._forget()
            raise
        self._settle_if_due(held)
        return held

    def _with_terms(self, connection: Connection) -> PostingsIndex:
        held = self._advanced(connection)
        return held.load_terms(connection) if held.lexical is None else held.lexical

    def _mend(self) -> None:
        """Put good derived files in the place of those that were found damaged, or that are missing altogether."""
        with self._lock:
            seq = 0 if self._held is None else self._held.seq
            owed = self._snapshots.discarded or (seq >= WORTH_KEEPING and not self._snapshots.paths())
            self._snapshots.discarded = 0
        if owed:
            self.publish_soon()

    def _settle_if_due(self, held: Held) -> None:
        """Have a generation written where the overlay has grown large. Who only writes leaves that to its end."""
        large = max(WORTH_KEEPING, held.seq // OVERLAY_PART)
        if held.vectors is not None and held.seq - max(held.base_seq, self._tried_seq) >= large:
            self._tried_seq = held.seq
            self._errand.start(self._settle)

    def _settle(self) -> None:
        """Write a generation and begin anew from it, while searches go on."""
        try:
            self._publish_unless_busy(pause)
            self._begin_anew()
        except (OSError, ClinragError) as exc:
            # Searches go on from memory; the next process that opens the collection tries again.
            logger.warning("derived files of collection %r were not written: %s", self._identity.name, exc)

    def _begin_anew(self) -> None:
        """Hold what the newest generation holds, without the overlay that led to it."""
        with self._lock:
            old = self._held
            if old is None or old.base_seq >= self._published_seq():
                return
            if old.vectors is None:  # Nobody searches here: whoever will loads the generation.
                self._forget()
                return
        try:
            with read_transaction(self._engine) as connection:
                fresh = Held.load(connection, self._snapshots, self._identity)
                fresh.load_vectors(connection)
                fresh.load_terms(connection)
            everything(fresh.columns, None)
            with self._lock, read_transaction(self._engine) as connection:
                fresh.follow(cursor_of(connection), cipher_of(connection))
                if self._held is old:
                    self._held = fresh
        except Erased:
            return

    def _published_seq(self) -> int:
        newest = next(iter(self._snapshots.paths()), None)
        return 0 if newest is None else int(newest.name)

    def _publish_unless_busy(self, between: Callable[[], None]) -> bool:
        try:
            with exclusive(self._publish_lock, f"a snapshot of collection {self._identity.name!r}"):
                self._publish(between)
        except WriterBusyError:
            return False
        return True

    def _publish(self, between: Callable[[], None]) -> None:
        """Write a generation; the lock is held only for as long as it takes to say of what."""
        with ExitStack() as stack:
            with self._lock:
                connection = stack.enter_context(read_transaction(self._engine))
                self._with_terms(connection)
                assert self._held is not None
                frozen = Frozen.of(self._held)
                self._snapshots.discarded = 0
            write_generation(
                connection,
                self._snapshots,
                self._identity,
                frozen,
                sealed=self._sealed,
                between=between,
                release=stack.close,
            )
