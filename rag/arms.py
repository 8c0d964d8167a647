"""What the two sources of a search propose: by meaning and by words, the languages on equal terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from indexer.store.selection import evenly
from rag.fusion import SAMPLE_ROWS, Background, PoolScores, backgrounds, calibrated, mean_nearness

if TYPE_CHECKING:
    from indexer.collection import View
    from indexer.store.view import Pool

LEAST_DENSE_SPREAD = 0.01
"""Cosines closer than this are not told apart: below it lies the rounding of float16 rows and of bfloat16 models."""

NEARNESS_ROWS = 128
"""So many vectors of a pool are read where a small pool's background must be foretold."""

LEAST_LEXICAL_SHARE = 1 / 6
"""Least spread of BM25 in a pool, as a share of the query's best score: most texts hold no word of a query at all."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Candidates of one source: ``rows`` best first; ``exhausted`` when there is nothing beyond them.

    ``reach`` says how well words reach into each language (1 = best of all); empty where nothing is made of it.
    """

    rows: NDArray[np.int64]
    exhausted: bool
    reach: Mapping[str | None, float]


EMPTY_ARM = Arm(np.empty(0, np.int64), True, {})


def dense_arm(view: View, vector: NDArray[np.float32], depth: int, balanced: bool) -> Arm:
    """Return candidates by similarity: each language's best, ordered by how far they lie above its background."""
    if not balanced:
        rows, _ = view.search_vectors(vector, depth)
        return Arm(rows, _all(len(rows), depth, len(view.rows)), {})
    pools = view.language_pools()
    found = view.vector_pools(vector, depth, SAMPLE_ROWS)
    told = backgrounds(
        {language: PoolScores(len(pools[language]), pool.sample) for language, pool in found.items()},
        LEAST_DENSE_SPREAD,
        lambda known: _nearness(view, pools, known),
    )
    exhausted = all(_all(len(pool.ids), depth, len(pools[language])) for language, pool in found.items())
    return Arm(_merged(found, told), exhausted, {})


def _all(found: int, depth: int, held: int) -> bool:
    """Say whether a search found all there is: notes of the view that were deleted since are not found any more."""
    return found < depth or found >= held


def _nearness(view: View, pools: Mapping[str | None, NDArray[np.int64]], known: str | None) -> dict[str | None, float]:
    """Return how near texts of the known pool are on average to those of each pool, by a few rows of each."""
    vectors = {
        language: view.searched_vectors(evenly(rows, NEARNESS_ROWS)).astype(np.float32)
        for language, rows in pools.items()
    }
    reference = vectors[known]
    return {
        language: mean_nearness(reference, None if language == known else other) for language, other in vectors.items()
    }


def lexical_arm(view: View, terms: Mapping[str, float], depth: int, balanced: bool) -> Arm:
    """Return candidates by shared words, and how well words reach into each language pool."""
    pools = view.language_pools()
    if not balanced:
        rows, _ = view.search_weighted(terms, depth)
        return Arm(rows, len(rows) < depth, dict.fromkeys(pools, 1.0))
    found = view.term_pools(terms, depth, SAMPLE_ROWS)
    best = max((float(pool.scores[0]) for pool in found.values() if len(pool.scores)), default=0.0)
    if best <= 0.0:
        return EMPTY_ARM
    told = backgrounds(
        {language: PoolScores(len(pools[language]), pool.sample) for language, pool in found.items()},
        best * LEAST_LEXICAL_SHARE,
        None,
    )
    reach = {language: float(pool.scores[0]) / best if len(pool.scores) else 0.0 for language, pool in found.items()}
    return Arm(_merged(found, told), all(len(pool.ids) < depth for pool in found.values()), reach)


def _merged(found: Mapping[str | None, Pool], told: Mapping[str | None, Background]) -> NDArray[np.int64]:
    """Return the rows of all pools whose background is known by calibrated score, ties by row."""
    pools = [(pool, told[language]) for language, pool in found.items() if language in told]
    if not pools:
        return np.empty(0, np.int64)
    rows = np.concatenate([pool.ids for pool, _ in pools])
    scores = calibrated([pool.scores for pool, _ in pools], [background for _, background in pools])
    return rows[np.lexsort((rows, -scores))]
