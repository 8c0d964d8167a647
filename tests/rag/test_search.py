from __future__ import annotations

import numpy as np
import pytest

from rag.search import SearchRequest, search
from tests.rag.collections import ConceptEncoder, HeldCollection, HeldPassage

QUERY = "insuficiencia renal tras contraste"


def meanings(count, seed, near=None, how_near=0.0, dim=59):
    """Random directions of meaning; with ``near``, tilted towards that one."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((count, dim))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    if near is None:
        return np.pad(drawn, ((0, 0), (0, 64 - dim)))
    tilt = rng.normal(how_near, 0.12, size=(count, 1))
    return np.pad(drawn, ((0, 0), (0, 64 - dim))) * np.sqrt(np.clip(1 - tilt**2, 0, 1)) + tilt * near


def world(distractors, foreign=40, pull=1.0, how_near=0.45, match_near=0.9, words=True):
    """One English match, English chunks about other things, and Spanish chunks a little like the query."""
    encoder = ConceptEncoder(pull=pull)
    about = meanings(1, 1)[0]
    encoder.put(QUERY, about, "es")
    passages = [
        HeldPassage(
            0,
            "match",
            encoder.put("Contrast-induced nephropathy", meanings(1, 7, about, 0)[0] * 0.45 + match_near * about, "en"),
            "en",
        )
    ]
    for n, meaning in enumerate(meanings(foreign, 2)):
        passages.append(HeldPassage(len(passages), f"en{n}", encoder.put(f"Other finding {n}", meaning, "en"), "en"))
    for n, meaning in enumerate(meanings(distractors, 3, about, how_near)):
        text = f"Paciente con insuficiencia renal {n}" if words else f"Paciente estable {n}"
        passages.append(HeldPassage(len(passages), f"es{n}", encoder.put(text, meaning, "es"), "es"))
    return HeldCollection(passages, encoder)


def rank_of(result, note_id):
    return next((hit.rank for hit in result.hits if hit.note_id == note_id), None)


@pytest.mark.parametrize("foreign", [0, 3, 20, 200])
@pytest.mark.parametrize("mode", ["dense", "hybrid"])
def test_thousands_of_same_language_distractors_do_not_push_a_foreign_match_out_of_the_first_ten(foreign, mode):
    few, many = world(5, foreign), world(5000, foreign)
    request = SearchRequest(QUERY, mode=mode)
    assert rank_of(search(few, few.encoder, request), "match") is not None
    assert rank_of(search(many, many.encoder, request), "match") is not None
