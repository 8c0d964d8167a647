"""A tiny data folder in the layout of the real one, and a tiny model directory with a unigram vocabulary."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import torch
import transformers

from rag.training.folder import unigram_tokenizer, write_pooling, write_tokenizer
from rag.training.package_weights import Pieces

WORDS = {
    "en": ["fever", "cough", "pain", "rash", "edema", "nausea", "asthma", "anemia"],
    "zh": ["发热", "咳嗽", "疼痛", "皮疹", "水肿", "恶心", "哮喘", "贫血"],
    "es": ["fiebre", "tos", "dolor", "erupción", "hinchazón", "náuseas", "asma crónica", "anemia grave"],
    "ja": ["熱発", "せき", "痛み", "発疹", "むくみ", "吐き気", "ぜんそく", "ひんけつ"],
}


def unigram_model(folder: Path, hidden: int = 32, layers: int = 2) -> Path:
    """Write a random BERT over a unigram vocabulary of characters and some words."""
    letters = sorted(
        {char for words in WORDS.values() for word in words for char in word}
        | set("abcdefghijklmnopqrstuvwxyz:,.?¿0123456789")
    )
    texts = ["<s>", "<pad>", "</s>", "<unk>", "▁", *letters, "▁the", "ever", "▁pa", "ж", "ب", "боль", "<mask>"]
    scores = np.array([0.0, 0.0, 0.0, 0.0] + [-8.0 + 0.01 * n for n in range(len(texts) - 5)] + [0.0], dtype=np.float32)
    pieces = Pieces(texts, scores, 0, 2, 1, 3)
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=len(texts),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        pad_token_id=1,
    )
    folder.mkdir(parents=True, exist_ok=True)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    write_tokenizer(unigram_tokenizer(pieces), folder, 64)
    write_pooling(folder, hidden, 64)
    return folder


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_table(path: Path, rows: list[tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines("\t".join(map(str, row)) + "\n" for row in rows)


def sentence(language: str, number: int) -> str:
    """A sentence of a language; one number says the same in all."""
    words = WORDS[language]
    parts = [words[(number // 8**place) % 8] for place in range(3)]
    return (" " if language in ("en", "es") else "").join(parts) + f" {number}."


def data_folder(folder: Path, concepts: int = 60) -> Path:
    """Write every file that the pairs stage reads, evaluated sets with overlaps among them."""
    _write_parallel(folder)
    _write_notes(folder)
    _write_terms(folder, concepts)
    _write_questions(folder)
    _write_titles(folder / "eval")
    return folder


def _write_parallel(folder: Path) -> None:
    languages = ("en", "zh", "es")
    tico = [
        {"id": f"tico19:{name}:{n}", **{key: sentence(key, n + 20 * at) for key in languages}}
        for at, name in enumerate(("PubMed_8", "PubMed_10"))
        for n in range(12)
    ]
    write_rows(folder / "parallel" / "tico19.jsonl.gz", tico)
    tanaka = [{"id": f"tanaka:{n}", "en": sentence("en", n + 100), "ja": sentence("ja", n + 100)} for n in range(20)]
    write_rows(folder / "parallel" / "tanaka_en_ja.jsonl.gz", tanaka)
    anki = [{"id": f"anki:{n}", "en": sentence("en", n + 200), "zh": sentence("zh", n + 200)} for n in range(20)]
    write_rows(folder / "parallel" / "tatoeba_train_en_zh.jsonl.gz", anki)
    write_rows(
        folder / "parallel" / "tatoeba_zh.jsonl.gz", [{"id": "tatoeba-zh:1", "en": "never", "zh": sentence("zh", 203)}]
    )
    for name in ("hpo_definitions", "doid_definitions", "openmrs_ui", "trec_ct_topics_mt"):
        prefix = "hpo-def:HP:" if name == "hpo_definitions" else name
        rows = [
            {"id": f"{prefix}{n}", "en": f"{sentence('en', n + 300)} {name}", "es": sentence("es", n + 300)}
            for n in range(6)
        ]
        write_rows(folder / "parallel" / f"{name}.jsonl.gz", rows)


def _write_notes(folder: Path) -> None:
    for language in ("en", "es"):
        rows = [
            {"id": f"S{n}", "text": (sentence(language, n).capitalize() + " ") * 9, "language": language}
            for n in range(20)
        ]
        write_rows(folder / "notes" / f"codiesp_{language}.jsonl.gz", rows)
    for language in ("en", "es", "it"):
        rows = [
            {"pair_id": f"c{n}", "text": sentence("es" if language == "it" else language, n + 400)} for n in range(3)
        ]
        write_rows(folder / "tasks" / "cardioccc" / f"test_{language}.jsonl.gz", rows)
    for name, language in (
        ("notes/aci_bench", "en"),
        ("notes/grascco", "es"),
        ("notes/meddocan", "es"),
        ("tasks/quaero/train", "es"),
        ("tasks/cmedqaner/train", "zh"),
        ("tasks/jmed_smdis/train", "ja"),
    ):
        rows = [
            {
                "id": f"{name}-{n}",
                "text": "".join(sentence(language, 7 * n + at + 800) + " " for at in range(30)),
                "language": language,
            }
            for n in range(12)
        ]
        write_rows(folder / f"{name}.jsonl.gz", rows)
    write_rows(
        folder / "tasks" / "jmed_crade" / "train.jsonl.gz", [{"id": "c0", "text_a": "x", "text_b": sentence("ja", 900)}]
    )


def _write_terms(folder: Path, concepts: int) -> None:
    terms = [
        {
            "concept": f"HP:{n}",
            "language": key,
            "term": f"{WORDS[key][n % 8]} {WORDS[key][n // 8 % 8]} {n}",
            "kind": "label",
        }
        for n in range(concepts)
        for key in ("en", "zh", "ja", "es")
    ]
    write_rows(folder / "terms" / "hpo.jsonl.gz", terms)
    write_table(folder / "terms" / "hpo_isa.tsv.gz", [(f"HP:{n}", f"HP:{n % 5}") for n in range(5, concepts)])
    write_rows(folder / "terms" / "doid.jsonl.gz", [])
    write_rows(folder / "terms" / "tico_covid.jsonl.gz", [])
    write_rows(
        folder / "terms" / "icd10_zh.jsonl.gz",
        [{"concept": "ICD10:A", "language": "zh", "term": terms[5]["term"], "kind": "label"}],
    )


def _write_questions(folder: Path) -> None:
    long = "one two three four five six seven eight nine ten eleven"
    corpus = [
        {
            "_id": f"a{n}",
            "title": WORDS["en"][n % 8],
            "text": f"{sentence('en', n + 500)} treats it. {long if n == 3 else ''}",
        }
        for n in range(16)
    ]
    write_rows(folder / "eval" / "medquad" / "corpus.jsonl.gz", corpus)
    kinds = ("symptoms", "treatment")
    queries = [
        {"_id": f"q{n}", "text": f"What of {WORDS['en'][n % 8]} {n}?", "qtype": kinds[n // 8]} for n in range(16)
    ]
    write_rows(folder / "eval" / "medquad" / "queries.jsonl.gz", queries)
    write_table(
        folder / "eval" / "medquad" / "qrels.tsv.gz",
        [("query-id", "corpus-id", "score"), *((f"q{n}", f"a{n}", 1) for n in range(16))],
    )
    write_rows(
        folder / "eval" / "xlinghealth_liveqa" / "corpus.jsonl.gz",
        [{"_id": "a0-en", "text": long + " twelve", "language": "en"}],
    )
    write_rows(folder / "eval" / "xlinghealth_liveqa" / "queries.jsonl.gz", [])


def _write_titles(folder: Path) -> None:
    for part, first in (("test", 0), ("dev", 5)):
        base = folder / f"cmedir_{part}"
        write_rows(
            base / "corpus.jsonl.gz",
            [{"_id": f"d{n}", "text": sentence("zh", n + 600), "language": "zh"} for n in range(first, first + 8)],
        )
        write_rows(
            base / "queries.jsonl.gz",
            [
                {"_id": f"{part}-q{n}", "text": sentence("zh", n + 700), "language": "zh"}
                for n in range(first, first + 8)
            ],
        )
        write_table(
            base / "qrels.tsv.gz",
            [("query-id", "corpus-id", "score"), *((f"{part}-q{n}", f"d{n}", 1) for n in range(first, first + 8))],
        )
