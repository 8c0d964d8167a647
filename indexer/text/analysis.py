"""Terms of a text for lexical search: the same analysis for passages and queries."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

_TERM = re.compile(r"[぀-ヿ㐀-䶿一-鿿]|\w+(?:[.,/-]\w+)*")


def analyze(text: str, language: str | None) -> list[str]:
    """Return the terms of a passage, in order, with repeats."""
    return _TERM.findall(unicodedata.normalize("NFKC", text).casefold())


def analyze_query(text: str, languages: Sequence[str]) -> dict[str, float]:
    """Return the weighted terms of a query, for passages in any of the languages."""
    return {term: float(n) for term, n in Counter(analyze(text, None)).items()}
