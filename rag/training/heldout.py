"""What no training ever sees: rules by id, and by normalised text, for all that is evaluated."""

from __future__ import annotations

import gzip
import hashlib
import json
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import regex

from indexer.errors import SourceError

LANGUAGES = ("en", "zh", "es", "ja", "ru", "nl", "ro", "fr", "de", "pt", "it")
TICO_DOCUMENTS = frozenset({"PubMed_10", "Wikipedia_handpicked_4", "Wikisource_2", "wiki_5", "wiki_26", "Wikinews_4"})
_EVALUATED_PARALLEL = (
    *(f"tatoeba_{language}" for language in ("de", "es", "fr", "it", "ja", "nl", "pt", "ro", "ru", "zh")),
    "flores_devtest",
    "igakuqa_ja_en",
    "paramed_manual_zh_en",
    "wmt18_19_biomedical",
    "mantra",
)
_EVALUATED_RETRIEVAL = (
    "xquad",
    "xlinghealth_liveqa",
    "xlinghealth_medicationqa",
    "liveqa_med2017",
    "cmedir_dev",
    "parallel_igakuqa2021",
)
_EVALUATED_TERMS = ("icd10_*", "icd10cm_en", "byomei_index_ja", "xlbel_*")
_SPACCC_ID = regex.compile(r"(?:meddocan-)?(S\d{4}-[\dX]+-\d+)")
_NOT_LETTERS = regex.compile(r"[^\p{L}\p{M}\p{N}]+")
_SHINGLE = 8


def bucket(identity: str, buckets: int) -> int:
    """Return the group of an id: its sha1 as a number, modulo ``buckets``."""
    return int(hashlib.sha1(identity.encode(), usedforsecurity=False).hexdigest(), 16) % buckets


def is_held_out_concept(concept: str) -> bool:
    """Whether a concept of a terminology is evaluated: a fifth of them are."""
    return bucket(concept, 5) == 0


def is_held_out_case(note_id: str) -> bool:
    """Whether a CodiEsp case (also where it recurs in another corpus) is evaluated: two fifths are."""
    return bucket(note_id, 5) < 2


def is_held_out_tico(row_id: str) -> bool:
    """Whether a TICO-19 row belongs to an evaluated document: ``tico19:DOCUMENT:NUMBER``."""
    return row_id.split(":")[1] in TICO_DOCUMENTS


def normalised(text: str) -> str:
    """Return the text folded to letters and digits: equal for texts that differ in case, width or punctuation."""
    return str(_NOT_LETTERS.sub(" ", unicodedata.normalize("NFKC", text).casefold())).strip()


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a gzip or plain JSON-lines file.

    Raises:
        SourceError: not there, not UTF-8, or a line is no JSON object; the message names file and line.
    """
    for _, row in numbered_rows(path):
        yield row


def rows_if_there(path: Path) -> Iterator[dict[str, Any]]:
    """Yield as `read_rows`; nothing of a file that is not there."""
    return read_rows(path) if path.is_file() else iter(())


def numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row of a gzip or plain JSON-lines file with its line number, from 1; blank lines are passed over.

    Raises:
        SourceError: as `read_rows`.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):  # bytes, so that a wrong encoding is told with its line
                if line.strip():
                    row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                    if not isinstance(row, dict):
                        raise SourceError(f"{path.name} line {number} is no JSON object")
                    yield number, row
    except FileNotFoundError as error:
        raise SourceError(f"{path.name} is not there: {path}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path.name} line {number} is not UTF-8; write the file in UTF-8") from error
    except json.JSONDecodeError as error:
        raise SourceError(f"{path.name} line {number} is no JSON: {error.msg}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path.name} cannot be read behind line {number}: {type(error).__name__}") from error


class HeldOut:
    """The evaluated texts of a data folder: whole texts of any kind, terms by language, shingles of English answers."""

    def __init__(self, data: Path) -> None:
        """Read what is there; a set that is missing cannot leak."""
        self.texts: set[str] = set()
        self.terms: set[tuple[str, str]] = set()
        self._concepts: set[str] = set()
        self._english: set[str] = set()
        self._shingles: set[int] = set()
        self.case_texts: set[str] = set()
        self._read_parallel(data / "parallel")
        self._read_retrieval(data / "eval")
        self._read_terms(data / "terms")
        for language in ("en", "es"):
            for row in rows_if_there(data / "notes" / f"codiesp_{language}.jsonl.gz"):
                if is_held_out_case(str(row["id"])):
                    self.case_texts.add(normalised(str(row["text"]))[:200])

    def _read_parallel(self, folder: Path) -> None:
        for name in (*_EVALUATED_PARALLEL, "tico19"):
            for row in rows_if_there(folder / f"{name}.jsonl.gz"):
                if name != "tico19" or is_held_out_tico(str(row["id"])):
                    self._add(text for key in LANGUAGES for text in _strings(row.get(key)))

    def _read_retrieval(self, folder: Path) -> None:
        for name in _EVALUATED_RETRIEVAL:
            for part in ("corpus", "queries"):
                for row in rows_if_there(folder / name / f"{part}.jsonl.gz"):
                    self._add(_strings(row["text"]))
                    if part == "corpus" and row.get("language", "en") == "en":
                        self._shingles.update(_shingles(str(row["text"])))

    def _read_terms(self, folder: Path) -> None:
        for pattern in _EVALUATED_TERMS:
            for path in sorted(folder.glob(f"{pattern}.jsonl.gz")):
                labels = list(read_rows(path))
                self._concepts.update(str(row["concept"]).casefold() for row in labels if "concept" in row)
                # an English label alone gives nothing away, and most are plain words ("Asthma")
                self._add_terms(row for row in labels if row["language"] != "en")
                self._english.update(normalised(str(row["term"])) for row in labels if row["language"] == "en")
        for name in ("hpo", "doid"):
            rows = rows_if_there(folder / f"{name}.jsonl.gz")
            self._add_terms(row for row in rows if is_held_out_concept(str(row["concept"])))

    def holds_text(self, text: str) -> bool:
        """Whether this very text (folded) is evaluated."""
        return normalised(text) in self.texts

    def holds_term(self, language: str, term: str) -> bool:
        """Whether this term is an evaluated label of that language."""
        return (language, normalised(term)) in self.terms

    def names_concept(self, english: str) -> bool:
        """Whether an English term is the name of an evaluated concept, in whatever language that one is evaluated."""
        folded = normalised(english)
        return folded in self._english or ("en", folded) in self.terms

    def holds_concept(self, concept: str) -> bool:
        """Whether the labels of a concept are evaluated: all of ICD-10, a fifth of the phenotypes and diseases."""
        fifth = concept.startswith(("HP:", "DOID:")) and is_held_out_concept(concept)
        return fifth or concept.casefold() in self._concepts

    def overlaps_answer(self, text: str, most: int = 1) -> bool:
        """Whether an English text shares more than ``most`` runs of eight words with an evaluated answer."""
        return len(self._shingles & set(_shingles(text))) > most

    def holds_case(self, text: str) -> bool:
        """Whether a note is (the same text as) an evaluated case, whatever its id."""
        return normalised(text)[:200] in self.case_texts

    def holds_note(self, note_id: str, text: str) -> bool:
        """Whether a note of any corpus is evaluated: by the id of a Spanish case, or by its text."""
        case = _SPACCC_ID.fullmatch(note_id)
        if case is not None and is_held_out_case(case.group(1)):
            return True
        return self.holds_case(text) or self.holds_text(text)

    def _add(self, texts: Iterable[str]) -> None:
        self.texts.update(filter(None, map(normalised, texts)))

    def _add_terms(self, rows: Iterable[dict[str, Any]]) -> None:
        self.terms.update((str(row["language"]), normalised(str(row["term"]))) for row in rows)


def _shingles(text: str) -> list[int]:
    words = normalised(text).split()
    return [hash(tuple(words[at : at + _SHINGLE])) for at in range(len(words) - _SHINGLE + 1)]


def _strings(value: object) -> list[str]:
    return [value] if isinstance(value, str) else []
