"""What an error means outside: its HTTP status and its exit code. Both ways in read this one table."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from indexer import errors


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of failure: ``slug`` names it in problem documents, ``retry_after_s`` says when to try again."""

    status: int
    exit_code: int
    slug: str
    title: str
    retry_after_s: int | None = None


class QueueFullError(errors.ClinragError, RuntimeError):
    """The server has as much indexing work as it will hold."""


class JobNotFoundError(errors.ClinragError, LookupError):
    """No job of that id."""


class ReceiptNotFoundError(errors.ClinragError, LookupError):
    """No receipt of that id."""


class AccessError(errors.ClinragError, PermissionError):
    """No key, an unknown one, or one of the other scope."""


class ForbiddenError(AccessError):
    """The key is good, its scope does not cover the request."""


INTERNAL = Code(500, 1, "internal", "Internal error")
INTERRUPTED_EXIT = 130
_AS_WRITTEN = {"date_from": "from", "date_to": "to"}

CODES: dict[type[errors.ClinragError], Code] = {
    errors.CollectionNotFoundError: Code(404, 2, "collection-not-found", "No such collection"),
    errors.CollectionExistsError: Code(409, 2, "collection-exists", "The collection is there already"),
    errors.NoteNotFoundError: Code(404, 2, "note-not-found", "No such note"),
    JobNotFoundError: Code(404, 2, "job-not-found", "No such job"),
    ReceiptNotFoundError: Code(404, 2, "receipt-not-found", "No such receipt"),
    errors.EncoderMismatchError: Code(409, 2, "encoder-mismatch", "The collection has another encoder"),
    errors.EncoderUnavailableError: Code(422, 2, "encoder-unavailable", "The encoder is not on this machine"),
    errors.ArgumentError: Code(422, 2, "bad-argument", "An argument is not of the allowed form"),
    errors.ScopeError: Code(422, 2, "bad-scope", "The scope is not of the allowed form"),
    errors.TooLargeError: Code(413, 2, "too-large", "The input is over its size limit"),
    errors.SourceError: Code(422, 2, "bad-source", "The input cannot be read"),
    errors.UnsupportedLanguageError: Code(422, 2, "unsupported-language", "There are no rules for that language"),
    errors.MissingExtraError: Code(422, 2, "missing-extra", "An optional package is not installed"),
    errors.WriterBusyError: Code(409, 1, "writer-busy", "Another process is writing to the collection", 5),
    errors.HeldError: Code(409, 2, "legal-hold", "The patient is under legal hold"),
    errors.KeysError: Code(409, 2, "keys-unavailable", "The keys of the encrypted collection are not at hand"),
    errors.KeyDestroyedError: Code(409, 2, "key-destroyed", "What is asked for was erased with its key"),
    errors.ErasurePendingError: Code(503, 1, "erasure-pending", "The erasure is not complete yet", 30),
    errors.StorageError: Code(500, 1, "storage-failed", "The disk refused a read or a write"),
    errors.StorageFullError: Code(507, 1, "storage-full", "The disk is full"),
    errors.DamagedError: Code(500, 1, "damaged", "Stored bytes do not match their checksum"),
    errors.GeneratorError: Code(502, 1, "generator-failed", "The language model failed"),
    QueueFullError: Code(503, 1, "queue-full", "The server has too much indexing work", 15),
    AccessError: Code(401, 2, "unauthorized", "A valid key is needed"),
    ForbiddenError: Code(403, 2, "forbidden", "The key's scope does not cover this"),
}


def code_of(error: BaseException) -> Code:
    """Return the code of an error; anything that is not ours is an internal one, but for a full disk."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CODES[errors.StorageFullError]
    return INTERNAL


def field_of(error: errors.ArgumentError) -> str:
    """Return the field of an argument as callers write it."""
    return _AS_WRITTEN.get(error.field, error.field)


def message_of(error: BaseException) -> str:
    """Return what a user may read of an error. Foreign messages can hold note text, so only their type is said."""
    if isinstance(error, errors.ArgumentError):
        return f"{field_of(error)} {error.reason}"
    if isinstance(error, errors.ClinragError):
        return str(error)
    if code_of(error).status == 507:
        return "the disk is full; free some space and try the same again"
    return f"internal error: {type(error).__name__}{_place(error)}"


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    code = trace.tb_frame.f_code
    return f" in {code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
