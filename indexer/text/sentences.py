"""Sentences with exact spans. Doses, dates, decimals, abbreviations and enumerations stay whole."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache

from indexer.records import Span
from indexer.text.folding import fold_term
from indexer.text.rules import SUPPORTED, load_rules

_LINE_END = re.compile(r"\r\n|[\n\r\x0b\x0c\x85\u2028\u2029]")
_CLOSERS = r"[\"'»”’」』）)\]］】}]*"
_FULL_STOPS = re.compile(
    r"(?P<cjk>[。！？｡．؟।॥۔]+[。！？｡．.!?…]*" + _CLOSERS + r")"
    r"|(?P<latin>[.!?…‽]+" + _CLOSERS + r"(?P<comma>,(?=[^\W\d_a-z]|\d+[.)]))?)(?=(?P<gap>\s*))"
)
_LIST_ITEM = re.compile(r"\s*(?:[-–—•·*▪◦‣●○■□◆◇・#＃>+]|\(?\d{1,3}[.)）．、](?!\d)|\(?[a-zA-Z][)）]|[①-⑳])")
_LABELLED = re.compile(
    "[\u3041-\u30ff\u3400-\u9fff]{1,6}[:：](?!\\d)"
)  # "患者：", a speaker or a field: no middle of prose
_HARD_BREAK = re.compile(r"\S  \Z")  # Of Markdown. Lines that are padded with blanks have other numbers of them.
_TOKEN_BEFORE = re.compile(r"\S+\Z")
_OPENERS = "([{«“‘\"'「『（［【<-–—/,;:"
_ENUMERATOR = re.compile(r"[(（]?(?:\d{1,3}|[A-Za-z]|[IVXivx]{1,5})\Z")
_BESIDE_ENUMERATORS = " \t\r\n\u3000(-–•*,"
_DAY_MONTH = re.compile(r"(?:0?[1-9]|[12]\d|3[01])\.(?:0?[1-9]|1[0-2])\Z")
_SPACED_DATE = re.compile(r"(?<!\d)(?:0?[1-9]|[12]\d|3[01])\. ?(?:0?[1-9]|1[0-2])\. ?(?:19|20)\d\d(?!\d)")
_SHORT_NUMBER = re.compile(r"\d{1,2}\Z")
_ROMAN = re.compile(r"[IVX]{1,5}\Z")
_FULL_WIDTH_WORD = re.compile(r"(?<![Ａ-Ｚａ-ｚA-Za-z])[Ａ-Ｚａ-ｚA-Za-z]{1,12}\Z")
_GOES_ON = re.compile(r"[;:)\]}%»）］｝，、；：]|,\s*[^\W\d_]")
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]\Z")
_NEXT_WORD = re.compile(r"[^\W_]+")
_GLUED = re.compile(r"[^\W\d_]{3,}\Z")

_LETTERED = re.compile(  # "hepatitis C." and "type A." end with their letter, "J. Smith" does not
    r"\b(?:vitamin|hepatit|typ|tip|class|klas|grup|stad|stage|child|витамин|гепатит|тип|групп|стад)\w* (?:\w+ )?\Z"
)
_COUNT_BEFORE = re.compile(r"\A.*\d[x×]?")
_VOWELS = frozenset("aeiouyаеиоуыэюяіαεηιουω")

_SOFT_WRAP_CHARS = 40
_SOFT_WRAP_CJK_CHARS = 30
_TOKEN_WINDOW = 40


@dataclass(frozen=True, slots=True)
class _StopRules:
    """What decides about one full stop, for one language or for all languages of the generic rules."""

    abbreviations: frozenset[str]
    unit_endings: frozenset[str]
    ordinal_before: frozenset[str]
    ordinal_after: frozenset[str]
    dotted_dates: bool


def split_sentences(text: str, language: str | None, span: Span | None = None) -> list[Span]:
    """Return the sentences of a text, or of a span of it, in order, each trimmed of white space.

    Together they hold every character of the span that is not white space. A language without rules is split by the
    general ones.

    >>> [(s.start, s.end) for s in split_sentences("Seen by Dr. Li. Takes 2.5 mg.", "en")]
    [(0, 15), (16, 29)]
    """
    start, end = (0, len(text)) if span is None else (span.start, span.end)
    rules = _stop_rules(language if language in SUPPORTED else None)
    lines = _line_cuts(text, start, end)
    cuts = sorted({*lines, *_stop_cuts(text, start, end, lines, rules)})
    spans: list[Span] = []
    for left, right in zip([start, *cuts], [*cuts, end], strict=True):
        piece = text[left:right]
        stripped = piece.strip()
        if stripped:
            first = left + len(piece) - len(piece.lstrip())
            spans.append(Span(first, first + len(stripped)))
    return spans


def _line_cuts(text: str, start: int, end: int) -> list[int]:
    """Return the line ends that end a sentence: all but those in the middle of wrapped prose."""
    cuts: list[int] = []
    line_start = start
    for match in _LINE_END.finditer(text, start, end):
        if not _is_wrapped(text, line_start, match.start(), match.end(), end):
            cuts.append(match.end())
        line_start = match.end()
    return cuts


def _is_wrapped(text: str, line_start: int, line_end: int, next_start: int, end: int) -> bool:
    line = text[line_start:line_end].rstrip()
    following = text[next_start : min(end, next_start + _TOKEN_WINDOW)]
    head = following.lstrip(" \t\u3000")
    if not line or not head or _LINE_END.match(head) or _LIST_ITEM.match(following):
        return False
    if _LABELLED.match(head) or _HARD_BREAK.search(text, max(line_start, line_end - 3), line_end):
        return False
    last, first = line[-1], head[0]
    if last in ".!?…。！？｡．:：;；":
        return False
    if last in "，、" or (last == "," and not first.isupper()):
        return True
    if _is_cjk(last) and _is_cjk(first):
        return len(line.strip()) >= _SOFT_WRAP_CJK_CHARS
    if last in "-\u00ad" and first.islower():
        return True
    return len(line.strip()) >= _SOFT_WRAP_CHARS and (first.islower() or first.isdigit() or first == "(")


def _is_cjk(char: str) -> bool:
    return "\u3041" <= char <= "\u30ff" or "\u3400" <= char <= "\u9fff" or "\uff01" <= char <= "\uff9f"


def _stop_cuts(text: str, start: int, end: int, lines: list[int], rules: _StopRules) -> list[int]:
    cuts: list[int] = []
    sentence_start = start
    for match in _FULL_STOPS.finditer(text, start, end):
        last_line = bisect_right(lines, match.start()) - 1
        if last_line >= 0:
            sentence_start = max(sentence_start, lines[last_line])
        ends = _ends_cjk(text, match, end) if match["cjk"] else _ends_latin(text, match, sentence_start, end, rules)
        if ends:
            cut = match.end("cjk") if match["cjk"] else match.end("latin")
            cuts.append(cut)
            sentence_start = cut
    return cuts


def _ends_cjk(text: str, match: re.Match[str], end: int) -> bool:
    before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 2]
    if after and unicodedata.category(after[0])[0] == "M":
        return False  # the mark belongs to the stop
    if match["cjk"].startswith("．") and after:
        if before.isdigit() and after[0].isdigit():
            return False  # full-width decimals
        letters = _FULL_WIDTH_WORD.search(text, max(0, match.start() - _TOKEN_WINDOW), match.start())
        if letters and (after[0].islower() or (after[0].isdigit() and len(letters[0]) <= 2)):
            return False  # "Ｈ．ｐｙｌｏｒｉ", "Ｎｏ．８"
    # A quotation that the sentence goes on with: 「痛い。」と話す
    return not (match["cjk"][-1] in "」』" and after.startswith(("と", "って", "の", "を", "が", "は")))


def _ends_latin(text: str, match: re.Match[str], sentence_start: int, end: int, rules: _StopRules) -> bool:
    stop = match["latin"]
    after_at = match.end("gap")
    if after_at >= end:
        return False  # the end of the span cuts anyway
    gap, following = match["gap"], text[after_at]
    before_at = max(sentence_start, match.start() - _TOKEN_WINDOW)
    token_match = _TOKEN_BEFORE.search(text[before_at : match.start()])
    if token_match is None:
        return bool(gap) and following.isupper() and match.start() > sentence_start  # "done . Next"
    token = token_match[0].lstrip(_OPENERS)
    if match["comma"]:
        return not following.islower()  # ".,Next": line ends that were turned into commas
    if not gap and not _is_glued_sentence(token, stop, text, match.end("latin")):
        return False
    if following.islower() or unicodedata.category(following)[0] == "M":
        return False
    goes_on = _GOES_ON.match(text, after_at)
    if goes_on and not goes_on[0][-1].isupper():
        return False  # "(PET, etc. )", "rhinitis? , mild"; but " ,Next" is a line end that was turned into a comma
    if stop[0] != ".":
        return True
    if len(stop) > 1 and stop[1] == ".":
        return following.isupper() or _is_cjk(following)
    return not _is_abbreviation(text, token, match.start() - len(token), after_at, sentence_start, rules)


def _is_glued_sentence(token: str, stop: str, text: str, at: int) -> bool:
    """Return whether "word.Next" ends a sentence although no blank follows."""
    after = text[at : at + 2]
    if _is_cjk(after[:1]):
        return bool(token) and not token[-1].isdigit() and not (token[-1].isascii() and token[-1].isupper())
    if stop != "." or _GLUED.search(token) is None or not token[-3:].islower():
        return False
    return len(after) == 2 and after[0].isupper() and after[1].islower()


def _is_abbreviation(
    text: str, token: str, token_at: int, after_at: int, sentence_start: int, rules: _StopRules
) -> bool:
    """Return whether the full stop behind the token belongs to it."""
    if _ENUMERATOR.match(token):
        at = token_at  # A step at a time: a sentence may be as long as the note, and hold a stop every few characters.
        while at > sentence_start and text[at - 1] in _BESIDE_ENUMERATORS:
            at -= 1
        if at == sentence_start or text[at - 1] in ":;":
            return True
    next_word = _NEXT_WORD.match(text, after_at)
    word = fold_term(next_word[0]) if next_word else ""
    if _DAY_MONTH.match(token) and rules.dotted_dates:
        return True
    if _ROMAN.match(token) and word in rules.ordinal_after:
        return True  # "III. Grades"
    if _SHORT_NUMBER.match(token):
        if any(date.end() > after_at for date in _SPACED_DATE.finditer(text, max(0, token_at - 4), after_at + 8)):
            return True  # "15. 03. 2043"
        previous = _TOKEN_BEFORE.search(text[max(sentence_start, token_at - _TOKEN_WINDOW) : token_at].rstrip())
        before = fold_term(previous[0].strip(_OPENERS)) if previous else ""
        if before in rules.ordinal_before or word in rules.ordinal_after:
            return True
    folded = fold_term(token.rpartition("(")[2])
    forms = {folded, folded.rpartition("/")[2], folded.rpartition("-")[2], _COUNT_BEFORE.sub("", folded)}
    before = text[max(sentence_start, token_at - _TOKEN_WINDOW) : token_at]
    # "5 m." and "38 UI/j." may end a sentence, "M. Dupont" and "Tbl." may not: a unit stands behind a number.
    counted = token[:1].isdigit() or before.rstrip()[-1:].isdigit()
    listed = not forms.isdisjoint(rules.abbreviations)
    short = _is_short(token, folded.rpartition("/")[2])
    if not forms.isdisjoint(rules.unit_endings):
        return ((listed or short) and not counted) or not text[after_at].isupper()
    if short and not listed and (counted or _LETTERED.search(fold_term(before) + " ")):
        return not text[after_at].isupper()
    return listed or short or _DOTTED.match(token) is not None


def _is_short(token: str, folded: str) -> bool:
    """Return whether the token is one letter, or letters that nobody can say ("Cl", "Tbl"), and no acronym ("MRT")."""
    if len(folded) == 1:
        return folded.isalpha()
    return 1 < len(folded) <= 4 and folded.isalpha() and not token.isupper() and _VOWELS.isdisjoint(folded)


@cache
def _stop_rules(language: str | None) -> _StopRules:
    """Return the rules of one language, or those of all together."""
    loaded = [load_rules(language)] if language else [load_rules(each) for each in SUPPORTED]
    return _StopRules(
        abbreviations=frozenset().union(*(rules.abbreviations for rules in loaded)),
        unit_endings=frozenset().union(*(rules.unit_endings for rules in loaded)),
        ordinal_before=frozenset().union(*(rules.ordinal_before for rules in loaded)),
        ordinal_after=frozenset().union(*(rules.ordinal_after for rules in loaded)),
        dotted_dates=any(rules.dotted_dates for rules in loaded),
    )
