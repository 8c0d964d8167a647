"""Which language a text is in: offline, ``None`` where it cannot be known.

The script decides where it can (kana, Hangul, Greek ...); Latin script goes to lingua's trigram models, loaded on first
use, together with a count of function words for short texts.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import TYPE_CHECKING

from indexer.text.folding import fold_term
from indexer.text.lexemes import word_lists
from indexer.text.memory import remembered
from indexer.text.rules import SUPPORTED, function_words

if TYPE_CHECKING:
    from collections.abc import Collection

    from lingua import LanguageDetector

__all__ = ["SUPPORTED", "identify", "identify_chunk", "identify_question"]

_SAMPLE_CHARS = 480
_MIN_LETTERS = 10
_LONG_LETTERS = 120  # from here on lingua is trusted alone: it reads trigrams only
_SURE = 0.8
_SURE_OF_SHORT = 0.95  # Of a term or two: to be told no language is better than the wrong one.
_CHUNK_MIN_LETTERS = 60
_CHUNK_MIN_HITS = 3.0
_FULL_WORD = 4
_WORD_FACTOR = 1.5
_RARE = 0.1
_CLEAR_HITS = 4.0
_CLEAR_FACTOR = 2.5
_ASKING_FACTOR = 5.0  # Of a question every word counts, and that of one language alone decides.
_LIKELY_FACTOR = 10.0
_USUAL = "en"
_CJK_WEIGHT = 3  # a Han character says about as much as three letters

_LETTERS = re.compile(r"[^\W\d_]+")
_LATIN = re.compile(r"[A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff]+")
_CYRILLIC = re.compile(r"[\u0400-\u052f]+")
_KANA = re.compile(r"[\u3041-\u3096\u30a1-\u30fa\uff66-\uff6f\uff71-\uff9d]+")
_PARTICLE = re.compile(
    r"(?<=[\u3400-\u9fff])[はがをにでとも](?![\u3041-\u30fa])"
)  # not の, which signs in Chinese have
_HAN = re.compile(r"[\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]+")
_WORD = re.compile(r"[^\W\d_]+")
_WHOLE_WORD = re.compile(r"(?<!\w)[^\W\d_]+(?!\w)")

_ONE_LANGUAGE_SCRIPTS = (
    ("ko", re.compile(r"[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]+")),
    ("el", re.compile(r"[\u0386-\u03ff\u1f00-\u1fff]+")),
    ("he", re.compile(r"[\u05d0-\u05ea]+")),
    ("hy", re.compile(r"[\u0531-\u0587]+")),
    ("ka", re.compile(r"[\u10a0-\u10ff]+")),
    ("th", re.compile(r"[\u0e01-\u0e4e]+")),
)
# Japanese without kana ("70歳男性", a table) is not Chinese: a character that only one of the two has in its standards
# tells them apart. These have both, but Japanese is not written with them since 1946, or never was.
_CHINESE_FORMS = frozenset(
    "双无个气醫藥發檢壓圖對應經廣擴險驗關續歸覺觀讀實總鐵繼遲轉輕兒樣劑腦臟齡攝鹽淨濟燒帶效勞惡變氣齒單從兩處滿體聲聽點當斷會學國數樂榮營"
    "靈雙屬寫圍團假價傳參雜擇觸證譯顯齊壞圓戰這們與來"
)
_LONG_HAN = 20  # So much of Han without a sign of Japanese is Chinese.
_UKRAINIAN_LETTERS = re.compile(r"[іїєґІЇЄҐ]")
_UKRAINIAN_WORD = re.compile(r"[а-я][іїєґ]|[іїєґ][а-я]")  # in small letters: "АГ ІІ ст." is Russian all the same
# Of none of the three; ѝ is Bulgarian.
_OTHER_CYRILLIC = re.compile(r"[ѐђѓѕј-ќўџЀЂЃЅЈ-ЌЎЏ\u0460-\u048f\u0492-\u052f]")
# Of Turkish, Vietnamese, Hungarian, Baltic and South Slavic languages, and of none that the models know.
_OTHER_LATIN = re.compile(r"[ğĞıİơƠưƯőŐűŰđĐāĀēĒīĪūŪģĢķĶļĻņŅėĖįĮųŲ\u1ea0-\u1ef9]")
_OTHER_LATIN_SHARE = 0.01
_MARKS = {"es": re.compile("[¿¡ñ]"), "pt": re.compile("[ãõ]"), "de": re.compile("ß"), "ro": re.compile("[ășțşţ]")}
"""Signs that a language has to itself, among those that can be told: each counts as a function word."""
_BULGARIAN_LETTERS = re.compile(r"[ъЪ]")
_RUSSIAN_LETTERS = re.compile(r"[ыэёЫЭЁ]")

# Languages that share the Latin script with the supported ones: known, so that they are not taken for one of them.
_LATIN_LANGUAGES = ("en", "es", "fr", "de", "it", "nl", "pt", "ro", "ca", "eu", "sv", "nb", "da", "pl", "cs")
_CYRILLIC_LANGUAGES = ("ru", "uk", "bg")
_NORWEGIAN = {"nb": "no"}


def identify(text: str) -> str | None:
    """Return the ISO 639-1 code of the text's language, or ``None`` when it has too few letters or is not sure.

    Reads a bounded sample (beginning, middle, end) of long texts.

    >>> identify("BP 120/80 HR 72") is None
    True
    """
    sample = _sample(text)
    script = _script(sample)
    if script is None:
        return None
    if script == "latin":
        return _identify_latin(sample)
    if script == "cyrillic":
        return _identify_cyrillic(sample)
    if script == "cjk":
        return _identify_cjk(sample)
    return script


def identify_chunk(text: str, inherited: str | None) -> str | None:
    """Return the inherited language of a passage unless the passage is surely in another one.

    A list of drugs or values proves nothing; a change within one script takes function words of the other language.
    """
    if inherited is None:
        return identify(text)
    sample = _sample(text)
    script = _script(sample)
    if script is None or _count(_LETTERS, sample) * (_CJK_WEIGHT if script == "cjk" else 1) < _CHUNK_MIN_LETTERS:
        return inherited
    if script == "latin":
        return _identify_latin_chunk(sample, inherited)
    if script == "cjk":
        found = _identify_cjk(sample)
        # Han alone does not make a passage of a Japanese note Chinese, unless it is written in simplified forms.
        return inherited if found is None or (inherited == "ja" and not any(map(_is_chinese, sample))) else found
    if script == "cyrillic":
        return inherited if inherited in _CYRILLIC_LANGUAGES else _identify_cyrillic(sample)
    return script


def identify_question(text: str, likely: Collection[str] = ()) -> str | None:
    """Return the language that a question is most likely asked in, among those with rules; ``None`` of bare terms.

    Who is asked has to answer in some language, and a likely one is better than one for all: this guesses where
    `identify` refuses. Between two it takes the one of ``likely``, those of the notes, or English.

    >>> identify_question("¿Fuma el paciente?"), identify_question("ИМТ"), identify_question("INR")
    ('es', 'ru', None)
    """
    found = identify(text)
    if found is not None:
        return found
    if _KANA.search(text):
        return "ja"
    if _HAN.search(text):
        return _identify_cjk(text) or ("ja" if "ja" in likely and "zh" not in likely else "zh")
    if _CYRILLIC.search(text):
        return _identify_cyrillic(text)
    words = _asking_words()
    hits: dict[str, float] = {}
    for word in set(_WHOLE_WORD.findall(text.lower())):
        owners = words.get(fold_term(word), frozenset())
        for language in owners:
            hits[language] = hits.get(language, 0.0) + 1 / len(owners)
    for language, sign in _MARKS.items():
        if sign.search(text.lower()):
            hits[language] = hits.get(language, 0.0) + 1
    if not hits:
        return None
    scores = _latin_scores(text)
    return max(
        hits,
        key=lambda language: (
            scores[language]
            * math.exp(_ASKING_FACTOR * hits[language])
            * (_LIKELY_FACTOR if language in likely or language == _USUAL else 1.0)
        ),
    )


@cache
def _asking_words() -> dict[str, frozenset[str]]:
    """Return the languages of each function word and each word that only helps to ask, folded."""
    owners: dict[str, set[str]] = {}
    asking = {language: words.split() for language, words in word_lists("analysis_stop_words.toml")["words"].items()}
    for lists in (asking, function_words()):
        for language, words in lists.items():
            for word in words if language in SUPPORTED else ():
                owners.setdefault(fold_term(word), set()).add(language)
    return {word: frozenset(languages) for word, languages in owners.items()}


def _sample(text: str) -> str:
    if len(text) <= _SAMPLE_CHARS:
        return text
    size = _SAMPLE_CHARS // 3
    middle = (len(text) - size) // 2
    late = max(middle + size, (len(text) * 4) // 5)
    return " ".join((text[:size], text[middle : middle + size], text[late : late + size]))


def _count(letters: re.Pattern[str], sample: str) -> int:
    return sum(map(len, letters.findall(sample)))


def _count_beside_names(letters: re.Pattern[str], sample: str) -> int:
    """Return how many of the letters stand in words that begin small, where any does.

    A name says where a patient or a doctor comes from, not what the note is written in.
    """
    if not letters.search(sample):
        return 0
    words = _WORD.findall(sample)
    small = [word for word in words if word[0].islower()] or words
    return sum(len(letters.findall(word)) for word in small)


def _script(sample: str) -> str | None:
    """Return "latin", "cyrillic", "cjk", a language code for a script of one language, or ``None``."""
    letters = _count(_LETTERS, sample)
    latin = letters if sample.isascii() else _count(_LATIN, sample)
    weights = {"latin": latin}
    if latin <= _CJK_WEIGHT * (letters - latin):
        weights["cyrillic"] = _count(_CYRILLIC, sample)
        weights["cjk"] = _CJK_WEIGHT * (_count(_HAN, sample) + _count(_KANA, sample))
        for language, script in _ONE_LANGUAGE_SCRIPTS:
            weights[language] = _count(script, sample) * (_CJK_WEIGHT if language == "ko" else 1)
    best = max(weights, key=lambda name: weights[name])
    return best if weights[best] >= _MIN_LETTERS and weights[best] * 2 >= letters else None


def _identify_latin(sample: str) -> str | None:
    hits = _function_word_hits(sample)
    clear = _clear_winner(hits)
    if clear is not None:
        return _NORWEGIAN.get(clear, clear)
    others = _count_beside_names(_OTHER_LATIN, sample)
    if others > 1 and others > _OTHER_LATIN_SHARE * _count(_LATIN, sample):
        return None
    if (
        max(hits.values(), default=0.0) < 1
        and sum(len(word) for word in _WORD.findall(sample) if len(word) >= _FULL_WORD) < _MIN_LETTERS
    ):
        return None  # "WBC 12.3 Hgb 9.8 Plt 230": letters, but no words
    scores = _latin_scores(sample)
    short = _count(_LATIN, sample) < _LONG_LETTERS
    if short:
        # Few trigrams: function words weigh as factors, and the neighbours without rules must win clearly.
        marked = {language for language, sign in _MARKS.items() if sign.search(sample.lower())}
        scores = {
            language: score
            * math.exp(_WORD_FACTOR * (hits.get(language, 0.0) + (language in marked)))
            * (1.0 if language in SUPPORTED else _RARE)
            for language, score in scores.items()
        }
    total = sum(scores.values())
    best = max(scores, key=lambda language: scores[language])
    if total <= 0 or scores[best] / total < (_SURE_OF_SHORT if short else _SURE):
        return None
    return _NORWEGIAN.get(best, best)


def _identify_latin_chunk(sample: str, inherited: str) -> str:
    hits = _function_word_hits(sample)
    best = max(hits, key=lambda language: hits[language], default=None)
    own = hits.get("nb" if inherited == "no" else inherited, 0.0)
    if best is None or hits[best] < _CHUNK_MIN_HITS or hits[best] < 2 * own:
        return inherited
    found = _identify_latin(sample)
    return inherited if found is None else found


def _clear_winner(hits: dict[str, float]) -> str | None:
    """Return the language whose function words leave no doubt, so that the models need not be asked."""
    best = max(hits, key=lambda language: hits[language], default=None)
    if best is None or hits[best] < _CLEAR_HITS:
        return None
    others = max((value for language, value in hits.items() if language != best), default=0.0)
    return best if hits[best] >= _CLEAR_FACTOR * others else None


def _function_word_hits(sample: str) -> dict[str, float]:
    """Return by language how many different function words occur; a word of n languages counts 1/n for each."""
    weights = _word_weights()
    hits: dict[str, float] = {}
    for word in set(_WORD.findall(sample.lower())):
        found = weights.get(word)
        if found is not None:
            languages, weight = found
            for language in languages:
                hits[language] = hits.get(language, 0.0) + weight
    return hits


@cache
def _word_weights() -> dict[str, tuple[tuple[str, ...], float]]:
    owners: dict[str, list[str]] = {}
    for language, words in function_words().items():
        for word in words:
            owners.setdefault(word, []).append(language)
    return {word: (tuple(languages), 1.0 / len(languages)) for word, languages in owners.items()}


def _identify_cyrillic(sample: str) -> str | None:
    others = _count_beside_names(_OTHER_CYRILLIC, sample)
    russian, ukrainian = (len(letters.findall(sample)) for letters in (_RUSSIAN_LETTERS, _UKRAINIAN_WORD))
    if others > 1 or (others and (ukrainian or not russian)):
        return None
    if russian or ukrainian:
        return "ru" if russian >= ukrainian else "uk"
    confidences = {
        value.language.iso_code_639_1.name.lower(): value.value
        for value in _detector(_CYRILLIC_LANGUAGES).compute_language_confidence_values(sample)
    }
    best = max(confidences, key=lambda language: confidences[language])
    if best == "ru" or (confidences[best] >= _SURE and _marks(best).search(sample)):
        return best
    # Short Russian diagnoses look Bulgarian to trigrams: a neighbour must show letters that Russian hardly uses.
    return None if _marks("uk").search(sample) else "ru"


def _marks(language: str) -> re.Pattern[str]:
    return _UKRAINIAN_LETTERS if language == "uk" else _BULGARIAN_LETTERS


def _identify_cjk(sample: str) -> str | None:
    kana, han = _count(_KANA, sample), _count(_HAN, sample)
    if kana * 12 >= han and (kana >= 2 or _count(_PARTICLE, sample)):
        return "ja"
    signs = [_wrote(char) for char in sample if _HAN.match(char)]
    japanese, chinese = signs.count("ja"), signs.count("zh")
    if japanese == chinese:
        return "zh" if han >= _LONG_HAN else None  # "肺炎" is both
    return "ja" if japanese > chinese else "zh"


def _is_chinese(char: str) -> bool:
    return _HAN.match(char) is not None and _wrote(char) == "zh"


@remembered(4096)
def _wrote(char: str) -> str | None:
    """Return the language that alone writes a Han character in this form, by what its national standards hold."""
    if char in _CHINESE_FORMS:
        return "zh"
    japanese = _in_standard(char, "shift_jis")
    chinese = _in_standard(char, "gb2312") or _in_standard(char, "big5")
    return None if japanese == chinese else "ja" if japanese else "zh"


def _in_standard(char: str, name: str) -> bool:
    try:
        char.encode(name)
    except UnicodeEncodeError:
        return False
    return True


def _latin_scores(sample: str) -> dict[str, float]:
    values = _detector(_LATIN_LANGUAGES).compute_language_confidence_values(sample)
    return {value.language.iso_code_639_1.name.lower(): value.value for value in values}


@cache
def _detector(languages: tuple[str, ...]) -> LanguageDetector:
    """Return a detector that loads its models on first use.

    Trigram models only: on 120 letters and more they decide alone in either mode, and the full set takes 400 MB
    and seconds to load.
    """
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = [getattr(IsoCode639_1, language.upper()) for language in languages]
    return LanguageDetectorBuilder.from_iso_codes_639_1(*codes).with_low_accuracy_mode().build()
