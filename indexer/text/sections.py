"""Sections of a note, found by their headers as people write them.

Headers stand on a line of their own, before a colon, in 【brackets】, or run on in one line ("...,PLAN:, ").
Which title means what is data (data/<language>.toml); what merely looks like a header opens a section with
key ``None``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from indexer.records import Section, Span
from indexer.text.folding import fold_term
from indexer.text.rules import SUPPORTED, load_rules
from indexer.text.spelling import simplified

_MAX_TITLE_CHARS = 60
_BEGINNING_CHARS = 2  # a title is looked at closely only if a known one begins like it
_MAX_UNKNOWN_CHARS = 50
_MAX_UNKNOWN_CJK_CHARS = 16
_MAX_UNKNOWN_WORDS = 6
_MIN_CAPITALS = 6
_MIN_SOAP_LETTERS = 2

_LINE = re.compile(r"[^\n\r\x0b\x0c\x85\u2028\u2029]+")
_PREFIX = re.compile(
    r"[\s\ufeff]*(?:(?P<bullet>[-–—•·・*▪](?=[\s\u3000]|[^\W_]))[\s\u3000]*)?"
    r"(?:(?P<mark>[#＃■◆●◇□○※*_▼▽►]+)[\s\u3000]*)?"
    r"(?:(?P<number>(?:\d{1,2}|[IVX]{1,4})(?:[.)．]|、)|[①-⑳])[\s\u3000]*(?!\d))?"
    r"(?P<strong>[*_]{1,3}(?=\w))?"
)
_BRACKETED = re.compile(
    r"【(?P<a>[^】\n]{1,24})】|[〔［\[](?P<b>[^〕］\]\n]{1,24})[〕］\]]|[＜《〈<](?P<c>[^＞》〉>\n]{1,24})[＞》〉>]"
)
_LENTICULAR = re.compile(r"【(?P<title>[^】\n]{1,24})】")
_COLON = re.compile(r"\s*[*_]{0,3}\s*(?:(?<!\d)[:：]|[:：](?!\d))")  # not that of 10:30
_DASH = re.compile(r"\s+[-–—]+\s+|\t")
_RUN_ON = re.compile(  # every repeat is bounded: a line may be as long as the note
    r"(?:(?:(?<=[.。;；!！?？)\]」】])|(?<=[.。;；],))\s{0,4}|(?<=\t)|(?<=\s\s)"
    r"|(?<=,)(?=[A-ZА-ЯЁ]{2})|(?<=[\s，,、])(?=[\u3400-\u9fff]))"
    r"(?P<title>[^\W\d_][^:：.。;；,，\n]{0,58}?)\s{0,3}[:：]"
)
_UPPER = re.compile(r"[A-ZÀ-ÖØ-ÞĂÎȘȚА-ЯЁ]+")
_CASED = re.compile(r"[A-Za-zÀ-ÖØ-öø-ÿĂăÎîȘșȚțА-Яа-яЁё]+")
_SOAP = re.compile(r"(?P<letter>[SOAPＳＯＡＰ])(?=[:：)）]|[\s\u3000]*\Z|\u3000)")
_SOAP_KEYS = {"s": "subjective", "o": "objective", "a": "assessment", "p": "plan"}

_TAIL_PAREN = re.compile(r"\s*[(\[][^)\]]*[)\]]\s*\Z")
_TAIL_DATE = re.compile(r"(?:\s+\w{1,5}\.?)?\s*\(?\d[\d./:年月日 -]*\)?\Z")
_JOINERS = re.compile(r"\s*(?:[/&+・,、;]|\b(?:and|y|e|et|und|u\.|en|si|и)(?!\w)|及び|および|及|与|和|と)\s*")
_TITLE_EDGES = " \t\u3000*_=."
_EDGES = " \t\u3000.-–—*_#:'\"="


@dataclass(frozen=True, slots=True)
class _Header:
    """A header found: where its line or title begins, where its content begins, what it is."""

    start: int
    content: int
    key: str | None
    title: str


@dataclass(frozen=True, slots=True)
class _Titles:
    """What the data files say of titles, for one language and English, or for all languages together."""

    headers: dict[str, str]
    labels: frozenset[str]
    qualifiers: tuple[str, ...]
    beginnings: frozenset[str]

    def key_of(self, title: str) -> str | None:
        """Return the canonical key of a title as written, or ``None``."""
        folded = _folded(title).strip(_EDGES)
        if folded in self.headers:
            return self.headers[folded]
        if folded[:_BEGINNING_CHARS] not in self.beginnings or folded in self.labels:
            return None
        bare = _TAIL_DATE.sub("", _TAIL_PAREN.sub("", folded)).strip(_EDGES)
        for form in (bare, self._without_qualifier(bare)):
            if form in self.headers:
                return self.headers[form]
        parts = [part.strip(_EDGES) for part in _JOINERS.split(bare)]
        if len(parts) < 2:
            return None
        keys = [self.headers.get(part) or self.headers.get(self._without_qualifier(part)) for part in parts]
        return keys[0] if all(keys) else None

    def is_label(self, title: str) -> bool:
        return _folded(title).strip(_EDGES) in self.labels

    def _without_qualifier(self, folded: str) -> str:
        for words in self.qualifiers:
            if folded.endswith(words):
                return folded.removesuffix(words).strip(_EDGES)
            if folded.startswith(words):
                return folded.removeprefix(words).strip(_EDGES)
        return folded


def split_sections(text: str, language: str | None) -> list[Section]:
    """Return the sections of a note: contiguous, in order, covering all of ``[0, len(text))``.

    Text before the first header has neither key nor title. A known header with nothing before an unknown one lends it
    its key. For a language without rules all known headers are tried.
    """
    if not text:
        return []
    headers = _meaningful(text, _find_headers(text, _titles(language if language in SUPPORTED else None)))
    sections: list[Section] = []
    if not headers or headers[0].start > 0:
        sections.append(Section(Span(0, headers[0].start if headers else len(text)), None, None))
    for header, end in zip(headers, [*(header.start for header in headers[1:]), len(text)], strict=False):
        sections.append(Section(Span(header.start, end), header.key, header.title))
    return sections


def _find_headers(text: str, titles: _Titles) -> list[_Header]:
    soap = _soap_lines(text)
    headers: list[_Header] = []
    for line in _LINE.finditer(text):
        at = line.start()
        for header in sorted(_line_headers(text, line, titles, soap), key=lambda header: header.start):
            if header.start >= at:  # a title found in two ways counts once
                headers.append(header)
                at = header.content
    return headers


def _line_headers(text: str, line: re.Match[str], titles: _Titles, soap: dict[int, str]) -> Iterator[_Header]:
    prefix = _PREFIX.match(text, line.start(), line.end())
    at = prefix.end() if prefix else line.start()
    if at >= line.end():
        return
    listed = prefix is not None and (prefix["bullet"] is not None or prefix["number"] is not None)
    bullet = prefix is not None and prefix["bullet"] is not None
    run_on_from = at
    header = None
    if line.start() in soap:
        title = soap[line.start()]
        header = _Header(line.start(), at + 1, _SOAP_KEYS[fold_term(title)], title)
    else:
        header = _title_at(text, line.start(), at, line.end(), titles, bullet)
        if header is None and not bullet:
            header = _unknown_at(text, line.start(), at, line.end(), titles)
    if header is not None:
        yield header
        run_on_from = header.content
    for match in _LENTICULAR.finditer(text, run_on_from, line.end()):
        yield _Header(match.start(), match.end(), titles.key_of(match["title"]), match["title"])
    if listed and header is None:
        return
    for match in _RUN_ON.finditer(text, run_on_from, line.end()):
        title = match["title"]
        if not title[0].islower() and "【" not in title and (key := titles.key_of(title)):
            yield _Header(match.start("title"), match.end(), key, title)


def _title_at(text: str, line_start: int, at: int, end: int, titles: _Titles, bullet: bool) -> _Header | None:
    """Return the known header that the line begins with."""
    bracketed = _BRACKETED.match(text, at, end)
    if bracketed:
        title = bracketed["a"] or bracketed["b"] or bracketed["c"]
        key = titles.key_of(title)
        return _Header(line_start, bracketed.end(), key, title) if key or bracketed["a"] else None
    window = min(end, at + _MAX_TITLE_CHARS)
    colon = _COLON.search(text, at, window)
    if colon and colon.start() > at and (key := titles.key_of(text[at : colon.start()])):
        return _Header(line_start, colon.end(), key, text[at : colon.start()].strip(_TITLE_EDGES))
    if bullet:
        return None
    dash = _DASH.search(text, at, window)
    for stop in (end, dash.start() if dash else end):
        title = text[at:stop].strip(_TITLE_EDGES)
        if 1 < len(title) <= _MAX_TITLE_CHARS and not title[0].islower() and (key := titles.key_of(title)):
            return _Header(line_start, stop, key, title)
    return None


def _unknown_at(text: str, line_start: int, at: int, end: int, titles: _Titles) -> _Header | None:
    """Return the line as a header of unknown meaning, if it is shaped like one."""
    line = text[at:end].strip(_TITLE_EDGES)
    if not line or len(line) > _MAX_UNKNOWN_CHARS or not line[0].isalpha() or line[0].islower():
        return None
    title = line[:-1].rstrip() if line[-1] in ":：" else line
    if not title or any(mark in title for mark in ".,:：;；。．，、!?？！") or len(title.split()) > _MAX_UNKNOWN_WORDS:
        return None
    if titles.is_label(title):
        return None
    if title is not line:
        limit = _MAX_UNKNOWN_CJK_CHARS if title[0] > "\u3000" else _MAX_UNKNOWN_CHARS
        return _Header(line_start, end, None, title) if len(title) <= limit else None
    capitals = sum(char.isupper() for char in title)
    # Of letters that have no case ("ＰＰＩ等を用いたがＧＥＲは") capitals say nothing.
    if capitals < _MIN_CAPITALS or any(char.isalnum() and not char.isupper() for char in title) or _is_shouted(text):
        return None
    return _Header(line_start, end, None, title)


def _meaningful(text: str, headers: list[_Header]) -> list[_Header]:
    """Drop unknown headers with nothing under them, and let a bare known header lend its key to the next."""
    kept: list[_Header] = []
    for n, header in enumerate(headers):
        following = headers[n + 1].start if n + 1 < len(headers) else len(text)
        has_content = bool(text[header.content : following].strip(" \t\r\n\u3000,.:：-"))
        if header.key is None and not has_content:
            continue
        parent = kept[-1] if kept else None
        if (
            header.key is None
            and parent is not None
            and parent.key is not None
            and not text[parent.content : header.start].strip(" \t\r\n\u3000,.:：-")
        ):
            kept[-1] = replace(parent, content=header.content)
            continue
        kept.append(header)
    return kept


def _is_shouted(text: str) -> bool:
    """Return whether capitals say nothing because most of the note is written in them."""
    sample = text[:2000]
    upper = sum(map(len, _UPPER.findall(sample)))
    return upper * 2 > sum(map(len, _CASED.findall(sample)))


def _soap_lines(text: str) -> dict[int, str]:
    """Return the lines that begin with a letter of SOAP, when at least two different letters do."""
    found: dict[int, str] = {}
    for line in _LINE.finditer(text):
        prefix = _PREFIX.match(text, line.start(), line.end())
        match = _SOAP.match(text, prefix.end() if prefix else line.start(), line.end())
        if match and (prefix is None or prefix["bullet"] is None):
            found[line.start()] = match["letter"]
    letters = {fold_term(letter) for letter in found.values()}
    return found if len(letters) >= _MIN_SOAP_LETTERS else {}


@cache
def _titles(language: str | None) -> _Titles:
    """Return the titles of a language over those of English, or those of all languages."""
    names = [language, "en"] if language else ["en", *SUPPORTED]
    loaded = [load_rules(name) for name in dict.fromkeys(names)]
    headers: dict[str, str] = {}
    for rules in loaded:
        for title, key in rules.headers.items():
            headers.setdefault(_folded(title), key)
    labels = frozenset(_folded(label) for rules in loaded for label in rules.labels)
    qualifiers = tuple(dict.fromkeys(_folded(words) for rules in loaded for words in rules.qualifiers))
    beginnings = frozenset(title[:_BEGINNING_CHARS] for title in (*headers, *qualifiers))
    return _Titles(headers, labels - headers.keys(), qualifiers, beginnings)


def _folded(title: str) -> str:
    """Return a title in the form in which titles are compared: traditional characters are as simplified ones."""
    folded = fold_term(title)
    return folded if folded.isascii() else simplified(folded)
