"""What a recipe's tables may say: the settings of its start, of each kind of stage, and of the scores meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ScratchSettings:
    """A BERT from nothing, ``from = "scratch"``: its shape, its vocabulary, and characters counted of a language."""

    vocabulary: int = 16_000
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    feed_forward: int = 1024
    positions: int = 256
    characters: int = 1_500_000


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """Vocabulary pruning: how many tokens to keep, counted on the data's texts and, where given, word lists.

    ``word_counts`` is a folder of ``LANGUAGE.tsv`` files, ``word<TAB>frequency`` a line.
    """

    size: int = 101_000
    word_counts: str = ""


@dataclass(frozen=True, slots=True)
class TransplantSettings:
    """The vocabulary of a ``donor`` (as ``start.from``) on the model's body; see `transplant`.

    method: ``similar`` makes a new token's row of its ``neighbours`` among the shared tokens, weighted by a softmax of
        their cosine in the donor at ``temperature``; ``map`` fits a linear map on the shared tokens.
    """

    donor: str = "package"
    method: str = "similar"
    neighbours: int = 10
    temperature: float = 0.1


@dataclass(frozen=True, slots=True)
class PairsSettings:
    """Pair building; rows go to the run's ``pairs`` folder. All files are named as they lie in the data folder.

    Without own files the public sources of the data folder are read; with own files only where ``public`` asks for it.

    notes: files or folders of notes, in any format that clinrag reads, out of which pairs are mined (`mining`).
    labels: names of concepts by language, for the codes of notes and for term alignment.
    parallel: texts in two languages or more; pairs: queries with their passages (`pair_files`).
    dev: the share of patients (or notes) and of concepts that judge and never train.
    licence: of the own files, for the card.
    """

    public: bool = False
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    parallel: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    dev: float = 0.1
    licence: str = ""


@dataclass(frozen=True, slots=True)
class MlmSettings:
    """Masked language modelling on notes: ``mixed`` takes all sources, ``clinical`` notes alone.

    The published pretraining used batch 32, length 128, rate 5e-5, 150,000 steps, duplication 5, at most 20
    predictions a sequence (15 %); scale down freely.
    """

    sources: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    steps: int = 150_000
    batch: int = 32
    max_length: int = 128
    learning_rate: float = 5e-5
    duplication: int = 5
    masked: float = 0.15
    whole_words: bool = False
    bfloat16: bool = False
    checkpoint_steps: int = 500


@dataclass(frozen=True, slots=True)
class AlignSettings:
    """Distillation from the start's own English vectors with cross-lingual contrast; one of steps, minutes is set.

    cycle: the kinds of rows of consecutive steps.
    contrast: the weight of the contrastive parts; at 0 the steps distil alone.
    """

    cycle: tuple[str, ...] = ("bitext", "terms", "keep")
    steps: int = 0
    minutes: float = 0.0
    learning_rate: float = 8e-5
    layer_decay: float = 1.0
    contrast: float = 1.0
    siblings: float = 0.5
    scale: float = 50.0
    keep_scale: float = 40.0
    distil_bitext: float = 10.0
    distil_terms: float = 4.0
    average: float = 0.99
    max_length: int = 112
    interpolate: float = 1.0
    bfloat16: bool = True


@dataclass(frozen=True, slots=True)
class SynonymSettings:
    """Terminology alignment by a multi-similarity loss on synonym sets across languages (SapBERT)."""

    steps: int = 500
    batch: int = 256
    learning_rate: float = 2e-5
    max_length: int = 32
    graded: bool = False


@dataclass(frozen=True, slots=True)
class ContrastSettings:
    """InfoNCE with cached large batches on (query, passage) pairs, by sentence-transformers' trainer.

    guide: a folder, catalog name or hub id; what it finds as near to the query as the positive is no negative (GIST).
    negatives: how many hard ones to mine a row, of the query's language, scored below ``negatives_margin`` times the
        positive.
    dims: Matryoshka dimensions, the model's own among them.
    rounded: ``int8`` or ``binary``: rounded vectors are trained along.
    """

    epochs: float = 1.0
    steps: int = -1
    batch: int = 256
    micro_batch: int = 16
    learning_rate: float = 2e-5
    max_length: int = 256
    guide: str = ""
    negatives: int = 0
    negatives_margin: float = 0.95
    dims: tuple[int, ...] = ()
    rounded: str = ""
    freeze_embeddings: bool = True
    checkpoint_steps: int = 100


@dataclass(frozen=True, slots=True)
class StaticSettings:
    """A static encoder, one row a token, made of the model so far; see `static`.

    dim: the table's width; the teacher's principal directions are kept.
    sif: a token of share ``p`` in the texts starts with the weight ``sif / (sif + p)``.
    texts: how many texts the teacher reads, besides every token alone; cut at ``max_length`` tokens.
    distil_steps, steps: batches of distillation, then of contrast; ``batch`` texts or pairs each, at ``distil_rate``
        and ``learning_rate`` (made for rows of a teacher of unit vectors); ``scale`` is the contrast's inverse
        temperature.
    draws: how often every pair of the run is drawn, each time in other languages and words.
    dims: Matryoshka dimensions of the contrast, ``dim`` among them.
    """

    dim: int = 256
    sif: float = 1e-3
    texts: int = 40_000
    max_length: int = 64
    batch: int = 1024
    distil_steps: int = 600
    distil_rate: float = 1e-3
    steps: int = 400
    learning_rate: float = 5e-4
    scale: float = 20.0
    draws: int = 3
    dims: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CorrectSettings:
    """Language mean correction: how many parallel pairs a language's mean difference is taken over."""

    pairs: int = 500


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """The packed form: 4-bit word embeddings, 8-bit layers."""

    max_length: int = 512


@dataclass(frozen=True, slots=True)
class DevSettings:
    """Scores while a stage trains, ``[dev]``: every so many minutes (0: only after each stage).

    rows: rows of `devscore.score_rows` by the beginning of their names; the run's own held-out pairs are always scored.
    limit: queries a row.
    take_best: a stage hands on its best weights, not its last.
    """

    minutes: float = 0.0
    rows: tuple[str, ...] = ()
    limit: int = 100
    take_best: bool = False


STAGES: Mapping[str, type[Any]] = {
    "prune": PruneSettings,
    "transplant": TransplantSettings,
    "pairs": PairsSettings,
    "mlm": MlmSettings,
    "align": AlignSettings,
    "synonyms": SynonymSettings,
    "contrast": ContrastSettings,
    "static": StaticSettings,
    "correct": CorrectSettings,
    "export": ExportSettings,
}
