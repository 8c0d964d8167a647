"""What of an encrypted truth's rows is sealed, with which key, and how rows are read as if they were not.

AES-256-GCM with a random nonce a value; a sealed value names its key, which belongs to the note's patient, or to the
note alone where it has none. Sealed are a version's text, its `DETAILS` as one value (in the column of the metadata),
the title of a section, and a vector. A value is bound to the note's id and version (a vector to the hash of its text),
so a row in another's place does not open. The patient's id is replaced by a token, the hash of a passage's text by a
keyed one: equal texts of one patient share it, and no others.

Not sealed: note ids and which note replaces or appends to which, languages, status, the names of sections, where
passages begin and end, and when notes were stored.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakSet

from cryptography.exceptions import InvalidTag
from sqlalchemy import Connection, Engine, Row

from indexer.errors import KeyDestroyedError
from indexer.records import Scalar
from indexer.store import truth
from indexer.store.data_key import DataKey, Owner, decrypted, encrypted
from indexer.store.keyring import Keyring
from indexer.text.memory import forgets

DETAILS = (
    *("content_hash", "text_hash", "encounter_id", "note_type"),
    *("authored_at", "authored_start", "authored_end", "source", "metadata"),
)
NEEDED = ("note_id", "version", "patient_id", "metadata")
"""Columns that a row must have for its details to be read; its ``text`` too where that is wanted."""

_HASHES = ("content_hash", "text_hash")
_OPTION = "clinrag_cipher"
_ID_BYTES = 8

AnyRow = Row[*tuple[Any, ...]]

_in_use: WeakSet[RowCipher] = WeakSet()
_entering = threading.Lock()


class RowCipher:
    """Seals and opens what one collection's truth holds."""

    def __init__(self, keyring: Keyring) -> None:
        """Use the collection's keys."""
        self.keyring = keyring
        self.metadata: dict[int, Mapping[str, Scalar]] = {}
        """The metadata of the versions of one truth, by number, as far as somebody asked for it since an erasure."""
        with _entering:
            _in_use.add(self)

    # --- writing

    @contextmanager
    def writing(self, owners: Iterable[Owner]) -> Iterator[Callable[[str, str | None], DataKey]]:
        """Give what finds the key of a note (id, patient); keys that are missing are made, none goes meanwhile."""
        with self.keyring.writing(list(owners)) as keys:
            yield lambda note_id, patient_id: keys[owner_of(note_id, patient_id)]

    def version(self, key: DataKey, note_id: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of a version as they are stored, from the plain ones (with ``text``)."""
        version = int(values["version"])
        said = {
            name: value.hex() if name in _HASHES and (value := values[name]) is not None else values[name]
            for name in DETAILS
        }
        details = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
        return {
            **values,
            **dict.fromkeys(DETAILS),
            **dict.fromkeys(_HASHES, b""),
            "patient_id": None if values["patient_id"] is None else key.token,
            "metadata": self.sealed(key, details, bound("details", note_id, version)),
            "text": self.sealed(key, values["text"].encode(), bound("text", note_id, version)),
        }

    def title(self, key: DataKey, note_id: str, version: int, n: int, title: str | None) -> bytes | None:
        """Return the title of a chunk's section as it is stored."""
        return None if title is None else self.sealed(key, title.encode(), bound("title", note_id, version, n))

    def vector(self, key: DataKey, text_hash: bytes, vector: bytes) -> bytes:
        """Return a vector as it is stored; ``text_hash`` is the keyed one."""
        return self.sealed(key, vector, b"vector\0" + text_hash)

    def reason(self, key: DataKey, reason: str) -> bytes:
        """Return the reason of a legal hold as it is stored."""
        return self.sealed(key, reason.encode(), b"hold\0" + key.token.encode())

    def sealed(self, key: DataKey, content: bytes, bound_to: bytes) -> bytes:
        """Return the key's id and the content, sealed."""
        return key.id + encrypted(key.cipher, content, bound_to)

    # --- reading

    def row(self, row: AnyRow) -> AnyRow:
        """Return the row so that its attributes are plain; what its checksum covers stays what is stored."""
        return cast("AnyRow", DecryptedRow(self, row._mapping))

    def opened(self, sealed: bytes, bound_to: bytes, table: str, key: object) -> bytes:
        """Return a sealed value; table and key of the row are for the message.

        Raises:
            KeyDestroyedError: the key it was sealed with is not there any more.
            DamagedError: it is not what was sealed, or not in this place.
        """
        try:
            return decrypted(self.key_of(sealed, table, key).cipher, sealed[_ID_BYTES:], bound_to)
        except InvalidTag:
            raise truth.damaged(table, key) from None

    def key_of(self, sealed: bytes, table: str, key: object) -> DataKey:
        """Return the key that a value was sealed with.

        Raises:
            KeyDestroyedError: it is not there any more.
            DamagedError: the value is no sealed one.
        """
        if not isinstance(sealed, bytes) or len(sealed) < _ID_BYTES:
            raise truth.damaged(table, key)
        found = self.keyring.key(sealed[:_ID_BYTES])
        if found is None:
            raise KeyDestroyedError(
                f"{table} row {key} was encrypted with a key that is not there any more: the patient was erased, or "
                "the file of keys is an old one; 'clinrag collections repair' puts aside what cannot be read"
            )
        return found

    def readable(self, sealed: bytes) -> bool:
        """Return whether the key of a sealed value is there."""
        return self.keyring.key(bytes(sealed[:_ID_BYTES])) is not None

    def vector_of(self, row: Any) -> bytes:
        """Return the vector of what has a ``key``, a ``text_hash`` and a ``vector`` as they are stored."""
        return self.vector_in(row.key, row.text_hash, row.vector)

    def vector_in(self, key: object, text_hash: bytes, vector: bytes) -> bytes:
        """Return a vector that is stored under a key and the hash of its text."""
        return self.opened(vector, b"vector\0" + text_hash, "vectors", key)

    def reason_of(self, sealed: bytes, token: str) -> str:
        """Return the reason of a legal hold."""
        return self.opened(sealed, b"hold\0" + token.encode(), "holds", "").decode()

    def patient_of(self, token: str) -> str | None:
        """Return whose token this is, ``None`` where the key was destroyed and nobody knows any more."""
        found = self.keyring.named(token)
        return None if found is None else found.owner.id


@forgets
def _forget_metadata() -> None:
    with _entering:
        ciphers = list(_in_use)
    for cipher in ciphers:
        cipher.metadata = {}


class DecryptedRow:
    """A row of the truth whose attributes are plain, while ``_mapping`` is what is stored. Opened when asked."""

    __slots__ = ("_cipher", "_details", "_key", "_mapping", "_text")

    def __init__(self, cipher: RowCipher, stored: Mapping[Any, Any]) -> None:
        self._cipher = cipher
        self._mapping = stored
        self._key: DataKey | None = None
        self._details: dict[str, Any] | None = None
        self._text: str | None = None

    def __getattr__(self, name: str) -> Any:
        """Return a column, opened."""
        if name == "text":
            if self._text is None:
                self._text = self._opened("text").decode()
            return self._text
        if name in DETAILS:
            return self._all()[name]
        try:
            value = self._mapping[name]
        except KeyError:
            raise AttributeError(name) from None
        return self.key.owner.id if name == "patient_id" and value is not None else value

    @property
    def key(self) -> DataKey:
        """The key that the note version is sealed with."""
        if self._key is None:
            stored = self._mapping
            key = self._cipher.key_of(stored["metadata"], "versions", self._number())
            patient = stored["patient_id"]
            # Who changes whose a note is, changes a column that no sealed value covers: the key says it too.
            own = key.token == patient if patient is not None else key.owner == Owner("note", stored["note_id"])
            if not own:
                raise truth.damaged("versions", self._number())
            self._key = key
        return self._key

    def chunk_hash(self, text: str) -> bytes:
        """Return what stands for the text of a chunk of this version."""
        return self.key.hashed(truth.text_hash(text))

    def title(self, chunk: AnyRow) -> str | None:
        """Return the title of the section of a chunk of this version."""
        if chunk.section_title is None:
            return None
        at = bound("title", self._mapping["note_id"], self._mapping["version"], chunk.n)
        return self._cipher.opened(chunk.section_title, at, "chunks", chunk.row).decode()

    def sealed_title(self, n: int, title: str | None) -> bytes | None:
        """Return the title of the section of chunk ``n`` of this version as it is stored."""
        return self._cipher.title(self.key, self._mapping["note_id"], self._mapping["version"], n, title)

    def _all(self) -> dict[str, Any]:
        if self._details is None:
            found = json.loads(self._opened("details", "metadata"))
            self._details = found | {name: bytes.fromhex(found[name]) for name in _HASHES}
        return self._details

    def _opened(self, what: str, column: str = "") -> bytes:
        stored = self._mapping
        assert self.key is not None  # that it belongs to this row's owner
        sealed, at = stored[column or what], bound(what, stored["note_id"], stored["version"])
        return self._cipher.opened(sealed, at, "versions", self._number())

    def _number(self) -> object:
        return self._mapping.get("id", f"of note {self._mapping['note_id']!r}")


def owner_of(note_id: str, patient_id: str | None) -> Owner:
    """Return whose key a note is sealed with."""
    return Owner("note", note_id) if patient_id is None else Owner("patient", patient_id)


def bound(what: str, note_id: str, version: int, n: int | None = None) -> bytes:
    """Return what a value of a note version is bound to."""
    return f"{what}\0{note_id}\0{version}\0{'' if n is None else n}".encode()


def use_cipher(engine: Engine, cipher: RowCipher | None) -> None:
    """Let every connection of the engine know how its rows are sealed."""
    engine.update_execution_options(**{_OPTION: cipher})


def cipher_of(connection: Connection | Engine) -> RowCipher | None:
    """Return how the rows behind a connection are sealed, ``None`` where they are not."""
    return cast("RowCipher | None", connection.get_execution_options().get(_OPTION))


def plain_rows(connection: Connection | Engine, rows: Iterable[AnyRow]) -> Iterable[AnyRow]:
    """Return the rows so that their attributes are plain; where nothing is sealed they are given back as they are."""
    cipher = cipher_of(connection)
    return rows if cipher is None else map(cipher.row, rows)


def chunk_hash(version: AnyRow, text: str) -> bytes:
    """Return what stands in a chunk's row for its text; ``version`` is one of `plain_rows`."""
    return version.chunk_hash(text) if isinstance(version, DecryptedRow) else truth.text_hash(text)


def chunk_title(version: AnyRow, chunk: AnyRow) -> str | None:
    """Return the title of a chunk's section; ``version`` is one of `plain_rows`."""
    if isinstance(version, DecryptedRow):
        return version.title(chunk)
    title: str | None = chunk.section_title
    return title
