"""Another encoder for a collection: vectors made beside the live ones, then a cutover, and the way back.

The other vectors are a whole collection of their own, in a space beside (`indexer.spaces`): the encoder's tokenizer
cuts the chunks too. Searches and writes go on in the live space meanwhile; whatever it stores or loses until the
cutover is followed. After a cutover the former space is kept, and a rollback follows the live one in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from indexer.collection import Collection
from indexer.encoders.encoder import Encoder
from indexer.encryption import ENCRYPTION
from indexer.errors import ArgumentError, DamagedError
from indexer.follower import Follower, OnProgress, damaged_beside, discarded, facts_beside, facts_of
from indexer.spaces import TRUTH
from indexer.store.failpoints import failpoint
from indexer.store.truth import spec_of

BATCH_NOTES = 64
WRITER_TIMEOUT_S = 10.0

_SHARED_FACTS = ("collection_id", "created_at", ENCRYPTION)


@dataclass(frozen=True, slots=True)
class Beside:
    """What lies beside a collection: how many of its note versions (``done`` of ``total``) it holds."""

    role: Literal["next", "previous"]
    encoder_name: str
    fingerprint: str
    done: int
    total: int


def beside(collection: Collection) -> Beside | None:
    """Return what lies beside the collection's live vectors, ``None`` for nothing."""
    folder = collection.spaces.beside()
    if folder is None or "spec" not in facts_beside(collection.name, folder):
        return None
    role: Literal["next", "previous"] = "previous" if folder == collection.spaces.previous() else "next"
    with _follower(collection, folder, _no_encoder) as follower:
        return Beside(role, follower.encoder_name, follower.spec.fingerprint, *follower.progress())


def reencode(
    collection: Collection,
    encoder_name: str,
    encoder: Encoder,
    on_progress: OnProgress = lambda done, total: None,
    batch_notes: int = BATCH_NOTES,
) -> int:
    """Make the vectors of another encoder beside the live ones; return how many note versions were embedded now.

    Goes on where an earlier run ended, however it did.

    Raises:
        ArgumentError: the collection has this encoder, or something else lies beside it.
        EncoderMismatchError: ... of another fingerprint.
    """
    if encoder.spec.fingerprint == collection.spec.fingerprint:
        raise ArgumentError("encoder", f"is the one that collection {collection.name!r} has already")
    folder = _space_for(collection, encoder_name, encoder)
    with _follower(collection, folder, lambda: encoder) as follower:
        return follower.catch_up(batch_notes, on_progress)


@contextmanager
def completed(collection: Collection, encoder: Callable[[], Encoder]) -> Iterator[Collection]:
    """Bring what lies beside to where the live vectors are, and open it to be searched (not written to).

    Raises:
        ArgumentError: nothing lies beside, or it was discarded meanwhile.
    """
    folder = _folder_beside(collection)
    _complete(collection, folder, encoder, lambda done, total: None)
    with _opened(collection, folder) as opened:
        yield opened


def cutover(
    collection: Collection, encoder: Callable[[], Encoder], on_progress: OnProgress = lambda done, total: None
) -> None:
    """Make the vectors beside the live ones, in one step; those that were live are kept for `rollback`.

    Collections that are open stay what they were and refuse to be written to; whoever opens it next has the new one.

    Raises:
        ArgumentError: nothing was re-encoded.
    """
    folder = _folder_beside(collection)
    if folder == collection.spaces.previous():
        raise ArgumentError(
            "collection", "was cut over already; 'rollback' goes back, 'discard' and 'reencode' begin anew"
        )
    _switch(collection, folder, encoder, on_progress, keep_as_previous=True)


def rollback(
    collection: Collection, encoder: Callable[[], Encoder], on_progress: OnProgress = lambda done, total: None
) -> None:
    """Make the vectors of before the cutover the live ones again; the encoder is needed only for notes stored since.

    Raises:
        ArgumentError: there was no cutover, or what was before it was discarded.
    """
    folder = collection.spaces.previous()
    if folder is None:
        raise ArgumentError("collection", "has nothing to go back to: no cutover, or the vectors before were discarded")
    _switch(collection, folder, encoder, on_progress, keep_as_previous=False)


def discard(collection: Collection) -> bool:
    """Remove what lies beside the live vectors; ``False`` where nothing does."""
    with collection.writer(WRITER_TIMEOUT_S):
        folder = collection.spaces.beside()
        if folder is None:
            collection.spaces.sweep()
            return False
        collection.spaces.drop(folder)
        return True


def _switch(
    collection: Collection,
    folder: Path,
    encoder: Callable[[], Encoder],
    on_progress: OnProgress,
    *,
    keep_as_previous: bool,
) -> None:
    _complete(collection, folder, encoder, on_progress)
    with _opened(collection, folder):
        pass  # so that whoever opens it next finds its indexes made
    with (
        _follower(collection, folder, encoder) as follower,
        collection.writer(WRITER_TIMEOUT_S),
        follower.unasked(),
    ):
        follower.finish()
        live = collection.path.parent
        collection.spaces.make_live(folder, live if keep_as_previous else None)


def _complete(collection: Collection, folder: Path, encoder: Callable[[], Encoder], on_progress: OnProgress) -> None:
    with _follower(collection, folder, encoder) as follower:
        follower.catch_up(BATCH_NOTES, on_progress)
        with collection.writer(WRITER_TIMEOUT_S):
            follower.finish()


def _space_for(collection: Collection, encoder_name: str, encoder: Encoder) -> Path:
    """Return the space that was begun for this encoder, made where there is none."""
    spaces = collection.spaces
    with collection.writer(WRITER_TIMEOUT_S):
        folder = spaces.beside()
        if folder is not None and not facts_beside(collection.name, folder):
            spaces.drop(folder)
            folder = None
        if folder is None:
            spaces.sweep()
            folder = spaces.make()
            own = facts_of(collection.path.parent)
            shared = {name: own[name] for name in _SHARED_FACTS if name in own}
            Collection.create(folder, encoder_name, encoder.spec, shared)
            failpoint("reencode.made")
            return folder
    known = facts_beside(collection.name, folder)
    if folder == spaces.previous():
        raise ArgumentError(
            "collection", f"keeps the vectors of {known['encoder_name']} for a rollback; 'discard' them first"
        )
    if spec_of(known["spec"]).fingerprint != encoder.spec.fingerprint:
        raise ArgumentError(
            "collection", f"has vectors of {known['encoder_name']} in the making; cut over to them or 'discard' them"
        )
    return folder


def _follower(collection: Collection, folder: Path, encoder: Callable[[], Encoder]) -> Follower:
    live = collection.path.parent
    return Follower(collection.name, live, folder, encoder, collection.cipher, collection.check_present)


@contextmanager
def _opened(collection: Collection, folder: Path) -> Iterator[Collection]:
    """Open what lies beside, with its derived files made.

    Raises:
        ArgumentError: it was discarded meanwhile, whatever that made of files that are gone.
    """
    try:
        with Collection(folder, collection.name, collection.spaces.root, collection.keyrings) as opened:
            opened.publish()
            yield opened
    except Exception as exc:
        collection.check_present()
        if not (folder / TRUTH).is_file():
            raise discarded() from exc
        if isinstance(exc, DamagedError):
            raise damaged_beside(collection.name, exc) from exc
        raise


def _folder_beside(collection: Collection) -> Path:
    folder = collection.spaces.beside()
    if folder is None:
        raise ArgumentError("collection", "has no other vectors beside it; run 'clinrag collections reencode' first")
    return folder


def _no_encoder() -> Encoder:
    raise AssertionError("nothing is embedded to look at a space")
