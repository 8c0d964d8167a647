"""The encoder port, and its exact oracle: hashed character n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.records import EncoderSpec


class Encoder(Protocol):
    """Turns texts into unit vectors. Thread safe for reading once built.

    Both sides give ``(n, dim) float32`` with L2-normalised rows, in the order of the texts; ``n = 0`` gives
    ``(0, dim)``; a text of nothing but white space gives a zero row. A text longer than ``max_tokens`` is never cut in
    silence: callers chunk first, and an over-long text raises ``ArgumentError`` naming its index.
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
