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

SHIPPED = "clinrag-compact"
"""The encoder that is known to find them (a test asks it): the question takes longer than a whole search."""

_known: dict[str, bool] = {}


def assume(fingerprint: str, *, crosses: bool) -> None:
    """Take it as known whether an encoder finds translations, without a test of it."""
    _known[fingerprint] = crosses


def crosses(encoder: Encoder) -> bool:
    """Return whether the encoder finds translations: the phrases of two languages are a test of it. Asked once."""
    if encoder.spec.model_id == SHIPPED:
        return True
    return asked(encoder)


def asked(encoder: Encoder) -> bool:
    """Return the outcome of the test itself."""
    fingerprint = encoder.spec.fingerprint
    if fingerprint not in _known:
        # All pairs in one call a side: a search from the command line waits for this.
        left = encoder.encode_queries([line for one, _ in PROBED for line in parallel_lines(one)])
        right = encoder.encode_passages([line for _, other in PROBED for line in parallel_lines(other)])
        pairs = zip(np.split(left, len(PROBED)), np.split(right, len(PROBED)), strict=True)
        found = [np.argmax(one @ other.T, axis=1) == np.arange(len(one)) for one, other in pairs]
        _known[fingerprint] = bool(np.mean(np.concatenate(found)) >= _LEAST_CROSSING)
    return _known[fingerprint]
