"""The encoder port, and its exact oracle: hashed character n-grams."""

from __future__ import annotations

import hashlib
import unicodedata
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import regex
from numpy.typing import NDArray

from indexer.errors import ArgumentError
from indexer.records import EncoderSpec


class Encoder(Protocol):
    """Turns texts into unit vectors. Thread safe for reading once built.

    Both sides give ``(n, dim) float32`` with L2-normalised rows, in the order of the texts; ``n = 0`` gives
    ``(0, dim)``; a text of nothing but white space gives a zero row. A text longer than ``max_tokens`` is never cut in
    silence: callers chunk first, and an over-long text raises ``ArgumentError`` naming its index. A row depends on its
    own text alone: not on its neighbours in the call, their number or their order (up to float rounding).
    """

    @property
    def spec(self) -> EncoderSpec:
        """What makes these vectors comparable with others."""
        ...

    @property
    def max_tokens(self) -> int:
        """Tokens of a caller's text that fit into one passage: special tokens and the prompt are subtracted."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row a query, ``(n, dim)``."""
        ...

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row a passage, ``(n, dim)``."""
        ...

    def token_spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return for each text its tokens' spans, ``(n_tokens, 2)`` in code points, without prompt or specials."""
        ...


class PromptedEncoder:
    """What models have in common whose sides differ by the prompt before a text: they say what they are, and encode."""

    _spec: EncoderSpec
    _max_tokens: int

    @property
    def spec(self) -> EncoderSpec:
        """What makes these vectors comparable with others."""
        return self._spec

    @property
    def max_tokens(self) -> int:
        """Tokens of a caller's text that fit into one passage."""
        return self._max_tokens

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row a query, ``(n, dim)``."""
        return self._encode(texts, self._spec.query_prompt)

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row a passage, ``(n, dim)``."""
        return self._encode(texts, self._spec.passage_prompt)

    def _encode(self, texts: Sequence[str], prompt: str) -> NDArray[np.float32]:
        raise NotImplementedError

    def _check_length(self, place: int, tokens: int) -> None:
        """Refuse a text, the one at ``place``, that has more tokens than fit."""
        if tokens > self._max_tokens:
            raise ArgumentError(
                f"texts[{place}]", f"has {tokens} tokens, the encoder takes {self._max_tokens}; cut it into chunks"
            )


_WORD = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]|[\p{L}\p{M}\p{N}]+|[^\s]")
_LARGEST_TOKEN_COUNT = 512


class HashingEncoder:
    """Character n-grams hashed into signed buckets: deterministic, offline, computable by hand.

    A text is NFKC-folded and case-folded; each word is padded with one blank on both sides and cut into its 3-grams
    (whole word included), each Han or Kana character also counts alone and with its neighbour. A feature adds ``sign *
    (1 + ln count)`` to the bucket ``crc32(feature) mod dim``, where the sign is the bit above the bucket (feature
    hashing: Weinberger et al. 2009). Rows are L2-normalised. Queries and passages are embedded alike.
    """

    def __init__(self, dim: int = 384) -> None:
        """Take the width of a vector."""
        self._spec = EncoderSpec(
            model_id="hashing",
            weights_sha256=hashlib.sha256(b"clinrag hashing 1").hexdigest(),
            pooling="sum",
            query_prompt="",
            passage_prompt="",
            dim=dim,
            normalize=True,
            max_length=_LARGEST_TOKEN_COUNT,
        )

    @property
    def spec(self) -> EncoderSpec:
        """What makes these vectors comparable with others."""
        return self._spec

    @property
    def max_tokens(self) -> int:
        """Words, and CJK characters, of one passage."""
        return _LARGEST_TOKEN_COUNT

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row a query, ``(n, dim)``."""
        return self.encode_passages(texts)

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row a passage, ``(n, dim)``.

        Raises:
            ArgumentError: a text has more than ``max_tokens`` tokens.
        """
        rows = np.zeros((len(texts), self._spec.dim), dtype=np.float32)
        for index, text in enumerate(texts):
            rows[index] = self._row(text, index)
        return rows

    def token_spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return the spans of words and of single CJK characters, ``(n_tokens, 2)`` in code points."""
        spans = [[match.span() for match in _WORD.finditer(text)] for text in texts]
        return [np.array(one, dtype=np.int64).reshape(-1, 2) for one in spans]

    def _row(self, text: str, index: int) -> NDArray[np.float32]:
        if len(text) > self.max_tokens and len(_WORD.findall(text)) > self.max_tokens:
            raise ArgumentError(f"texts[{index}]", f"is longer than {self.max_tokens} tokens; cut it into chunks first")
        words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
        counts: dict[str, int] = {}
        for feature in _features(words):
            counts[feature] = counts.get(feature, 0) + 1
        row = np.zeros(self._spec.dim, dtype=np.float64)
        for feature in sorted(counts):
            code = zlib.crc32(feature.encode())
            bucket, sign = code % self._spec.dim, 1.0 if (code // self._spec.dim) % 2 == 0 else -1.0
            row[bucket] += sign * _weight(counts[feature])
        length = float(np.linalg.norm(row))
        return (row / length if length else row).astype(np.float32)


@lru_cache(maxsize=1024)
def _weight(count: int) -> float:
    return float(1.0 + np.log(count))


def _features(words: Sequence[str]) -> list[str]:
    found = []
    previous = ""
    for word in words:
        if len(word) == 1 and ord(word) >= 0x2E80:
            found.append(word)
            if previous:
                found.append(previous + word)
            previous = word
            continue
        previous = ""
        if not word[0].isalnum():
            continue
        padded = f" {word} "
        found.append(padded)
        found.extend(padded[at : at + 3] for at in range(len(padded) - 2))
    return found
