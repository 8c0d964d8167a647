"""Language tags as sources write them to ISO 639-1 codes."""

from __future__ import annotations

import re

_TAG = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{1,8})*\Z")
# ISO 639-2 says "several", "none" and "unknown" with codes of its own.
_UNSAID = frozenset(("mul", "und", "zxx", "mis"))
_ISO_639_1 = frozenset(
    """aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en
    eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv
    ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne
    ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st
    su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu""".split()  # noqa: SIM905
)
_ISO_639_2 = {
    "ara": "ar", "baq": "eu", "cat": "ca", "ces": "cs", "chi": "zh", "cmn": "zh", "cze": "cs", "dan": "da", "deu": "de",
    "dut": "nl", "ell": "el", "eng": "en", "eus": "eu", "fin": "fi", "fra": "fr", "fre": "fr", "ger": "de", "glg": "gl",
    "gre": "el", "hun": "hu", "ita": "it", "jpn": "ja", "kor": "ko", "nld": "nl", "nor": "no", "pol": "pl", "por": "pt",
    "ron": "ro", "rum": "ro", "rus": "ru", "spa": "es", "swe": "sv", "tur": "tr", "ukr": "uk", "vie": "vi", "zho": "zh",
}  # fmt: skip


def language_code(tag: str) -> str | None:
    """Return the ISO 639-1 code of a language tag, ``None`` where the tag says that no one language is known.

    >>> language_code("pt-BR"), language_code("zho"), language_code("und")
    ('pt', 'zh', None)

    Raises:
        ValueError: the tag names no language that ISO 639-1 has. The message does not repeat the tag.
    """
    tag = tag.strip()
    if not _TAG.match(tag):
        raise ValueError("is not a language tag")
    primary = re.split("[-_]", tag, maxsplit=1)[0].lower()
    if primary in _UNSAID:
        return None
    code = _ISO_639_2.get(primary, primary)
    if code not in _ISO_639_1:
        raise ValueError("is not an ISO 639-1 language")
    return code
