"""One error type per thing a caller can mend; messages never hold text of a note.

::

    ClinragError
    ├── CollectionNotFoundError (LookupError)   404 / exit 2
    ├── CollectionExistsError   (ValueError)    409 / exit 2
    ├── NoteNotFoundError       (LookupError)   404 / exit 2
    ├── EncoderMismatchError    (ValueError)    409 / exit 2
    ├── EncoderUnavailableError (LookupError)   422 / exit 2
    ├── ArgumentError           (ValueError)    422 / exit 2
    │   └── ScopeError
    ├── TooLargeError           (ValueError)    413 / exit 2
    ├── SourceError             (OSError)       422 / exit 2   an input that cannot be opened or is not what it says
    ├── UnsupportedLanguageError (ValueError)   422 / exit 2
    ├── MissingExtraError       (ImportError)   422 / exit 2   an optional package is not installed
    ├── WriterBusyError         (TimeoutError)  409 / exit 1
    ├── StorageError            (OSError)       500 / exit 1
    ├── StorageFullError        (OSError)       507 / exit 1
    ├── HeldError               (PermissionError) 409 / exit 2   a patient is under legal hold
    ├── KeysError               (PermissionError) 409 / exit 2   an encrypted collection without its keys
    │   └── KeyDestroyedError                                  what is asked for was erased with its key
    ├── ErasurePendingError     (TimeoutError)  503 / exit 1   asked for, not done yet; goes on by itself
    ├── DamagedError            (RuntimeError)  500 / exit 1
    └── GeneratorError          (RuntimeError)  502 / exit 1
"""

from __future__ import annotations


class ClinragError(Exception):
    """The root of everything clinrag raises on purpose."""


class CollectionNotFoundError(ClinragError, LookupError):
    """No collection of that name."""


class CollectionExistsError(ClinragError, ValueError):
    """A collection of that name is there already."""


class NoteNotFoundError(ClinragError, LookupError):
    """No visible note of that id."""


class EncoderMismatchError(ClinragError, ValueError):
    """The collection was embedded with another encoder."""


class EncoderUnavailableError(ClinragError, LookupError):
    """The encoder is unknown or not on this machine."""


class ArgumentError(ClinragError, ValueError):
    """An argument is not of the allowed form."""

    def __init__(self, field: str, reason: str) -> None:
        """Keep the field apart, so that HTTP can point at it."""
        super().__init__(f"{field} {reason}")
        self.field = field
        self.reason = reason


class ScopeError(ArgumentError):
    """A scope attribute is not of the allowed form."""


class TooLargeError(ClinragError, ValueError):
    """An input is over its size limit."""


class SourceError(ClinragError, OSError):
    """An input cannot be opened, or is not what it says it is."""


class UnsupportedLanguageError(ClinragError, ValueError):
    """There are no rules for that language."""


class MissingExtraError(ClinragError, ImportError):
    """An optional package is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        """Name the extra and the line that installs it."""
        super().__init__(f"{what} needs the extra '{extra}': pip install 'clinrag[{extra}]'")
        self.extra = extra


class WriterBusyError(ClinragError, TimeoutError):
    """Another process is writing to the collection."""


class StorageError(ClinragError, OSError):
    """The disk refused a read or a write; nothing of the batch was acknowledged."""


class StorageFullError(ClinragError, OSError):
    """The disk is full; nothing of the batch was stored."""


class HeldError(ClinragError, PermissionError):
    """A patient's notes are under legal hold."""


class KeysError(ClinragError, PermissionError):
    """The keys of an encrypted collection are not at hand, or are not the right ones."""


class KeyDestroyedError(KeysError):
    """Something was encrypted with a key that was destroyed since; nobody can read it any more."""


class ErasurePendingError(ClinragError, TimeoutError):
    """An erasure was asked for and cannot be completed yet; the next time that the collection is opened goes on."""


class DamagedError(ClinragError, RuntimeError):
    """Stored bytes do not match their checksum."""


class GeneratorError(ClinragError, RuntimeError):
    """The language model behind a generator failed or answered nonsense."""
