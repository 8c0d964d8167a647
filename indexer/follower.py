"""The space beside the live one: brought to where the live truth is, and never left with more than that.

Locks are taken in one order, the live space's before the one beside, so that no two processes wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from indexer.embedding import Vectors, embedded, passages_of
from indexer.encoders.encoder import Encoder
from indexer.errors import ArgumentError, DamagedError, EncoderMismatchError, ErasurePendingError
from indexer.records import EncoderSpec
from indexer.spaces import DERIVED_LOCK, LOCK, TRUTH, Spaces
from indexer.store import mirror, truth
from indexer.store import schema as t
from indexer.store.asked import pending_erasures
from indexer.store.cipher import RowCipher, use_cipher
from indexer.store.distinct import without
from indexer.store.embedded import MissingVectorsError
from indexer.store.failpoints import failpoint
from indexer.store.folders import remove_folder
from indexer.store.lock import exclusive
from indexer.store.mirror import Cut
from indexer.store.packing import empty_log, pack
from indexer.store.snapshots import DERIVED
from indexer.store.sqlite import MEND_DAMAGE, Engine, open_engine, read_transaction, write_transaction
from indexer.store.witness import Witness

OnProgress = Callable[[int, int], None]

LOCK_TIMEOUT_S = 30.0
_WHAT = "the vectors beside collection {!r}"


def discarded() -> ArgumentError:
    """Return what is to be told who works on a space beside that somebody else has removed."""
    return ArgumentError("collection", "has lost the vectors beside it: they were discarded meanwhile")


def damaged_beside(name: str, found: DamagedError) -> DamagedError:
    """Return the error for damage that is in the live truth or in the one beside it: a repair mends the live one."""
    beside = (
        f"where 'clinrag collections verify {name}' finds nothing, that is in the vectors beside it: "
        f"'clinrag collections discard {name}' removes them"
    )
    return DamagedError(str(found).replace(MEND_DAMAGE, beside))


def facts_of(folder: Path) -> dict[str, str]:
    """Return what a space says of itself; empty for one whose making was cut short."""
    if not (folder / TRUTH).stat().st_size:
        return {}
    engine = open_engine(folder / TRUTH)
    try:
        if not t.format_version(engine):
            return {}
        with read_transaction(engine) as connection:
            return truth.read_meta(connection)
    finally:
        engine.dispose()


def facts_beside(name: str, folder: Path) -> dict[str, str]:
    """Return what `facts_of` does, of the space beside. Raises `DamagedError`."""
    try:
        return facts_of(folder)
    except DamagedError as exc:
        raise damaged_beside(name, exc) from exc


class Follower:
    """Copies the live truth's notes into the space beside, cut and embedded for that one's encoder.

    Every batch is one durable transaction: what was embedded stays embedded, however the process ends. Usable as a
    context manager.
    """

    def __init__(
        self,
        name: str,
        live: Path,
        folder: Path,
        encoder: Callable[[], Encoder],
        cipher: RowCipher | None,
        check_live: Callable[[], None],
    ) -> None:
        """Follow the truth of the folder ``live``; the encoder is asked for when there is something to embed.

        ``cipher`` is how both truths are sealed; ``check_live`` raises where that truth is not the live one any more.

        Raises:
            DamagedError: the space beside was not made to its end.
            ArgumentError: it is not there any more; every other call says so too.
        """
        try:
            self._inode = (folder / TRUTH).stat().st_ino
            facts = facts_beside(name, folder)
        except FileNotFoundError as exc:
            check_live()
            raise discarded() from exc
        if "spec" not in facts:
            raise DamagedError("the vectors made beside are not whole; run 'clinrag collections discard', then again")
        self.spec: EncoderSpec = truth.spec_of(facts["spec"])
        self.encoder_name = facts["encoder_name"]
        self._name = name
        self._check_live = check_live
        self._folder = folder
        self._load = encoder
        self._source = open_engine(live / TRUTH)
        self._target = open_engine(folder / TRUTH)
        for engine in (self._source, self._target):
            use_cipher(engine, cipher)

    def __enter__(self) -> Follower:
        """Return itself."""
        return self

    def __exit__(self, _kind: object, exc: object, _trace: object) -> None:
        """Let go of both truths, and say of damage which of them it may be in."""
        self._source.dispose()
        self._target.dispose()
        if isinstance(exc, DamagedError):
            raise damaged_beside(self._name, exc) from exc

    def progress(self) -> tuple[int, int]:
        """Return how many note versions of the live truth are there, and how many there are."""
        with read_transaction(self._source) as source, read_transaction(self._target) as target:
            wanted, there = mirror.version_ids(source), mirror.version_ids(target)
        return len(wanted) - len(without(wanted, there)), len(wanted)

    def catch_up(self, batch_notes: int, on_progress: OnProgress = lambda done, total: None) -> int:
        """Copy the versions that are missing, new ones that arrive meanwhile too; return how many that were.

        Raises:
            EncoderMismatchError: the encoder is another than the one that the space is for.
        """
        copied = 0
        while len(missing := self._missing()):
            encoder = self._checked_encoder()
            done, total = self.progress()
            on_progress(done, total)
            for start in range(0, len(missing), batch_notes):
                batch = missing[start : start + batch_notes]
                self._copy(encoder, batch)
                copied += len(batch)
                on_progress(min(total, done + start + len(batch)), total)
        return copied

    def finish(self) -> None:
        """Make the space equal to the live truth in all but chunks and vectors. The live writer lock is held.

        Raises:
            ErasurePendingError: an erasure from the collection has not come to its end.
            DamagedError: the two do not hold the same history.
        """
        self.catch_up(1)
        with (
            self._locked(),
            read_transaction(self._source) as source,
            write_transaction(self._target) as target,
        ):
            if pending_erasures(source):
                raise ErasurePendingError("an erasure from the collection is not complete; try again when it is")
            mirror.remove_gone(source, target)
            mirror.finish(source, target)
        failpoint("reencode.finished")
        with read_transaction(self._target) as target:
            Witness(self._folder).write(truth.last_change(target))

    @contextmanager
    def unasked(self) -> Iterator[None]:
        """Let nobody ask the live truth for an erasure within the block: nobody may be told that it goes on there."""
        with write_transaction(self._source):
            yield

    def _missing(self) -> list[int]:
        with read_transaction(self._source) as source, read_transaction(self._target) as target:
            wanted, there = mirror.version_ids(source), mirror.version_ids(target)
        missing = without(wanted, there)
        if len(missing) and len(there) and missing[0] < there[-1]:
            # Chunk rows must rise with the versions that they belong to.
            raise DamagedError("the vectors made beside lack notes in their middle; discard them and begin again")
        return [int(number) for number in missing]

    def _checked_encoder(self) -> Encoder:
        encoder = self._load()
        if encoder.spec.fingerprint != self.spec.fingerprint:
            raise EncoderMismatchError(
                f"the vectors beside collection {self._name!r} are of {self.encoder_name} "
                f"(fingerprint {self.spec.fingerprint[:12]}), this machine's is {encoder.spec.fingerprint[:12]}; "
                f"'clinrag collections discard {self._name}' removes them, 'reencode' makes them anew"
            )
        return encoder

    def _copy(self, encoder: Encoder, numbers: list[int]) -> None:
        with read_transaction(self._source) as source:
            cuts = [
                Cut(version, *passages_of(encoder, version.text, version.language))
                for version in mirror.source_versions(source, numbers)
            ]
        texts = {
            key: cut.source.text[chunk.start : chunk.end]
            for cut in cuts
            for chunk, key in zip(cut.chunks, cut.hashes, strict=True)
        }
        with read_transaction(self._target) as target:
            lacking = mirror.unembedded(target, cuts)
        vectors = embedded(encoder, {key: text for key, text in texts.items() if key in lacking})
        failpoint("reencode.embedded")
        while True:
            try:
                return self._write(cuts, vectors)
            except MissingVectorsError as exc:
                # An erasure took the last note with this text between our look and our commit.
                vectors |= embedded(encoder, {key: texts[key] for key in exc.hashes})

    def _write(self, cuts: list[Cut], vectors: Vectors) -> None:
        """Write a batch, but for what was deleted or erased since it was read, and what another process wrote."""
        numbers = [cut.source.version_id for cut in cuts]
        with (
            self._locked(),
            read_transaction(self._source) as source,
            write_transaction(self._target) as target,
        ):
            wanted = mirror.still_there(source, numbers) - mirror.still_there(target, numbers)
            mirror.add_versions(target, [cut for cut in cuts if cut.source.version_id in wanted], vectors)
            failpoint("reencode.written")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(exclusive(self._folder / LOCK, _WHAT.format(self._name), LOCK_TIMEOUT_S))
                there = (self._folder / TRUTH).stat().st_ino == self._inode
            except FileNotFoundError:
                there = False
            # What a truth holds that is not live any more may be deleted or erased by now: nothing is copied from it.
            self._check_live()
            if not there:
                raise discarded()
            yield


def forget_beside(name: str, spaces: Spaces, live: Engine, deadline: float) -> None:
    """Let the space beside hold nothing that the live truth has lost, in any of its files.

    Called by an erasure while it holds the live writer lock. A process that fills the space looks again whether a note
    is still there when it holds the lock taken here, so what it read before cannot come back.

    Raises:
        WriterBusyError: the space is being written to until the deadline (of ``time.monotonic``).
        ErasurePendingError: a reader holds an older state of it until then.
        StorageError: a file of it cannot be removed.
        DamagedError: nobody can tell what it holds.
    """
    spaces.sweep()
    folder = spaces.beside()
    if folder is None:
        return
    try:
        if facts_of(folder):
            _forget(name, folder, live, deadline)
        else:
            spaces.drop(folder)  # not made to its end, or cut off to nothing: then what is derived of it is still there
    except DamagedError as exc:
        raise damaged_beside(name, exc) from exc


def _forget(name: str, folder: Path, live: Engine, deadline: float) -> None:
    left_s = max(0.0, deadline - time.monotonic())
    with exclusive(folder / LOCK, _WHAT.format(name), left_s):
        engine = open_engine(folder / TRUTH)
        try:
            with read_transaction(live) as source, write_transaction(engine) as target:
                mirror.remove_gone(source, target)
            failpoint("erase.beside")
            pack(engine, deadline)
            if not empty_log(engine, folder / TRUTH, deadline, synced=True):
                raise ErasurePendingError("a reader still holds an older snapshot of the vectors beside")
        finally:
            engine.dispose()
        left_s = max(0.0, deadline - time.monotonic())
        with exclusive(folder / DERIVED_LOCK, f"a snapshot of {_WHAT.format(name)}", left_s):
            remove_folder(folder / DERIVED)
