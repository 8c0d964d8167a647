"""Does an encoder bring translations together, or does it only compare spellings?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rag.phrases import parallel_lines

if TYPE_CHECKING:
    from indexer.encoders.encoder import Encoder

PROBED = (("en", "zh"), ("es", "ru"), ("de", "ja"))
"""Pairs of languages whose phrases are compared."""

_LEAST_CROSSING = 0.8
"""An encoder that finds fewer translations compares spellings, not meanings (hashing: .3, e5: 1.0)."""

_known: dict[str, bool] = {}


def assume(fingerprint: str, *, crosses: bool) -> None:
    """Take it as known whether an encoder finds translations, without a test of it."""
    _known[fingerprint] = crosses


def crosses(encoder: Encoder) -> bool:
    """Return whether the encoder finds translations: the phrases of two languages are a test of it. Asked once."""
    fingerprint = encoder.spec.fingerprint
    if fingerprint not in _known:
        found = []
        for one, other in PROBED:
            left = encoder.encode_queries(parallel_lines(one))
            right = encoder.encode_passages(parallel_lines(other))
            found.append(np.argmax(left @ right.T, axis=1) == np.arange(len(left)))
        _known[fingerprint] = bool(np.mean(np.concatenate(found)) >= _LEAST_CROSSING)
    return _known[fingerprint]
