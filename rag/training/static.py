"""A static encoder: one row a token, a text being the mean of its tokens' rows at unit length; no layers at all.

In three steps (model2vec's way):

1. The table starts as the teacher's vector of every token alone, its principal directions kept, frequent tokens
   weighted down (SIF, Arora et al. 2017).
2. Texts of the run's pairs come to the teacher's vector of their English wording (distillation).
3. Partners are told apart from all others in a large batch of same-language and crossing rows (InfoNCE both ways).

The result is sentence-transformers' own `StaticEmbedding` with unit length behind it.
Shapes: V tokens, N texts, D the teacher's width, K the table's.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from indexer.encoders.catalog import load_encoder
from indexer.encoders.encoder import Encoder
from indexer.errors import ArgumentError
from rag.training.batches import Sampler, Sizes, Texts
from rag.training.contrast_rows import contrast_rows
from rag.training.heldout import rows_if_there
from rag.training.settings import StaticSettings
from rag.training.trainers import Tell, on_one_gpu, run_trainer, save_model, shared_arguments, without_card
from rag.training.watch import DevWatch

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

Floats = NDArray[np.float32]
_CHARACTERS = 600  # of a text: a few sentences, in all scripts less than the teacher's longest
_KEPT_ROWS = 12_000
_STALE = 20  # batches in a row without a new row: a small folder is read out
_TEACHER_TEXTS = 2048


def make_static(
    teacher: Path,
    pairs: Path,
    out: Path,
    folder: Path,
    settings: StaticSettings,
    seed: int,
    tell: Tell,
    watch: DevWatch | None = None,
) -> Path:
    """Write the static encoder of a teacher (a model folder) to ``out``; what ``folder`` holds is not made again.

    Raises:
        ArgumentError: the pairs hold no row, or a dimension does not fit.
    """
    from tokenizers import Tokenizer

    if settings.dims and max(settings.dims) != settings.dim:
        raise ArgumentError("static.dims", f"must have the table's own {settings.dim} as the largest")
    tokenizer = Tokenizer.from_file(str(teacher / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = taught_texts(pairs, settings.texts, seed)
    made = folder / "taught.npz"  # what a run that was cut off goes on from
    if not made.is_file():
        encoder = load_encoder(str(teacher))
        if not 0 < settings.dim <= encoder.spec.dim:
            raise ArgumentError("static.dim", f"must lie between 1 and the teacher's {encoder.spec.dim}")
        targets = _encoded(
            encoder,
            [target for _, target in texts],
            settings.max_length,
            lambda share: tell(0.4 * share, {"read": "texts"}),
        )
        names = token_texts(tokenizer)
        tokens = _encoded(
            encoder, names, settings.max_length, lambda share: tell(0.4 + 0.2 * share, {"read": "tokens"})
        )
        new = folder / f"taught.{os.getpid()}.npz"  # several processes may come here
        np.savez(new, targets=targets.astype(np.float16), tokens=tokens.astype(np.float16))
        new.replace(made)
    taught = np.load(made)
    targets, tokens = (taught[name].astype(np.float32) for name in ("targets", "tokens"))
    centre, directions = principal(targets, settings.dim)
    distilled = folder / "distilled.safetensors"
    if not distilled.is_file():
        table = start_table(tokenizer, tokens, directions, [text for text, _ in texts], settings.sif)
        model = _model(tokenizer, table)
        labels = _unit((targets - centre) @ directions)
        _train(model, _distil(model, texts, labels, settings), folder, settings, seed, tell, watch)
        new = folder / f"distilled.{os.getpid()}"
        save_file(model[0].state_dict(), new)
        new.replace(distilled)
    model = _model(tokenizer, load_file(distilled)["embedding.weight"].numpy())
    if _train(model, _contrast(model, pairs, settings, seed), folder, settings, seed, tell, watch):
        shutil.rmtree(out, ignore_errors=True)
        save_model(model, out)
    return out


def token_texts(tokenizer: Tokenizer) -> list[str]:
    """Return what each token says by itself, ``V`` texts; nothing for those that are no text."""
    size = tokenizer.get_vocab_size()
    special = set(tokenizer.get_added_tokens_decoder())
    return ["" if token in special else tokenizer.decode([token]).strip() for token in range(size)]


def taught_texts(pairs: Path, limit: int, seed: int) -> list[tuple[str, str]]:
    """Return (text, the text that the teacher reads for it); at most ``limit`` different ones of the latter.

    What is said in several languages stands for its English; every other text for itself.

    Raises:
        ArgumentError: the folder holds no row.
    """
    chance = random.Random(f"{seed}/static")  # noqa: S311 - no secret
    groups = list(dict.fromkeys(_groups(pairs)))
    chance.shuffle(groups)
    if not groups:
        raise ArgumentError("pairs", "hold no row to train on; run the recipe's pairs stage over a folder with data")
    rows = dict.fromkeys((text, target) for target, texts in groups[:limit] for text in texts)
    return [(text, target) for text, target in rows if text.strip() and target.strip()]


def _groups(pairs: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield an English (or the only) wording and all wordings that mean the same."""

    def alone(*texts: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield from ((text[:_CHARACTERS], (text[:_CHARACTERS],)) for text in texts)

    for row in rows_if_there(pairs / "bitext.jsonl"):
        texts = row["texts"]
        yield texts["en"][:_CHARACTERS], tuple(text[:_CHARACTERS] for text in texts.values())
    for row in rows_if_there(pairs / "terms.jsonl"):
        names = [name for found in row["terms"].values() for name in found[:1]]
        yield row["terms"]["en"][0], tuple(names)
    for row in rows_if_there(pairs / "questions.jsonl"):
        asked = tuple(row.get("questions", {}).values())
        yield row["question"], (row["question"], *asked)
        yield from alone(row["answer"])
    for row in rows_if_there(pairs / "titles.jsonl"):
        yield from alone(row["query"], row["title"])
    for row in rows_if_there(pairs / "mined.jsonl"):
        yield from alone(row["query"], row["passage"])
    for row in rows_if_there(pairs / "keep.jsonl"):
        at = len(row["text"]) // 3
        yield from alone(row["text"][at:])


def principal(rows: Floats, width: int) -> tuple[Floats, Floats]:
    """Return the mean ``(D,)`` of the rows ``(N, D)`` and their first principal directions ``(D, width)``."""
    centre = rows.mean(0)
    _, directions = np.linalg.eigh(np.cov(rows - centre, rowvar=False, dtype=np.float64))  # in rising order
    return centre, np.ascontiguousarray(directions[:, ::-1][:, :width], dtype=np.float32)


def start_table(tokenizer: Tokenizer, tokens: Floats, directions: Floats, texts: Sequence[str], sif: float) -> Floats:
    """Return the table ``(V, K)`` before training: tokens ``(V, D)`` less their mean, turned and weighted.

    A token that is no text has a row of zeros. ``texts`` are what frequencies are counted on.
    """
    counts: Counter[int] = Counter()
    for at in range(0, len(texts), _TEACHER_TEXTS):
        for one in tokenizer.encode_batch_fast(list(texts[at : at + _TEACHER_TEXTS]), add_special_tokens=False):
            counts.update(one.ids)
    total = max(1, counts.total())
    weights = np.array([sif / (sif + counts[token] / total) for token in range(len(tokens))], dtype=np.float32)
    said = np.linalg.norm(tokens, axis=1) > 0
    table = (tokens - tokens[said].mean(0)) @ directions * weights[:, None]
    return np.where(said[:, None], table, 0.0).astype(np.float32)


def _encoded(encoder: Encoder, texts: Sequence[str], length: int, tell: Callable[[float], None]) -> Floats:
    """Return the teacher's rows of the texts, cut where it must; a text that comes twice is read once."""
    longest = min(encoder.max_tokens, length)
    different = sorted(dict.fromkeys(texts), key=len)
    rows: dict[str, int] = {text: number for number, text in enumerate(different)}
    found = []
    for at in range(0, len(different), _TEACHER_TEXTS):
        part = different[at : at + _TEACHER_TEXTS]
        spans = encoder.token_spans(part)
        cut = [
            text if len(span) <= longest else text[: span[longest - 1][1]]
            for text, span in zip(part, spans, strict=True)
        ]
        found.append(encoder.encode_queries(cut))
        tell((at + len(part)) / len(different))
    every = np.concatenate(found)
    return every[[rows[text] for text in texts]]


def _model(tokenizer: Tokenizer, table: Floats) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    # a GPU would wait for the processor's tokens
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, table), Normalize()], device="cpu")


def _said(model: SentenceTransformer, texts: Sequence[str]) -> list[bool]:
    """Return which texts have a token with a row; a vector of zeros has no direction, nor a finite gradient."""
    module: Any = model[0]
    filled = module.embedding.weight.detach().abs().amax(1).gt(0).numpy()
    found = module.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [bool(filled[one.ids].any()) for one in found]


def _distil(
    model: SentenceTransformer, texts: Sequence[tuple[str, str]], labels: Floats, settings: StaticSettings
) -> _Part:
    from datasets import Dataset
    from sentence_transformers.sentence_transformer import losses

    said = _said(model, [text for text, _ in texts])
    chosen = [number for number, text in enumerate(said) if text]
    rows = Dataset.from_dict({"text": [texts[number][0] for number in chosen], "label": list(labels[chosen])})
    loss = losses.EmbedDistillLoss(model, distance_metric="cosine")
    return _Part("distil", rows, loss, settings.distil_steps, settings.distil_rate, 0.6)


def _contrast(model: SentenceTransformer, pairs: Path, settings: StaticSettings, seed: int) -> _Part:
    from datasets import Dataset
    from sentence_transformers.sentence_transformer import losses

    rows = static_rows(pairs, settings.draws, seed)
    both = (_said(model, [row[side] for row in rows]) for side in (0, 1))
    rows = [row for row, *said in zip(rows, *both, strict=True) if all(said)]
    data = Dataset.from_dict({"anchor": [query for query, _ in rows], "positive": [passage for _, passage in rows]})
    core: Any = losses.MultipleNegativesRankingLoss(
        model,
        scale=settings.scale,
        directions=("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
    )
    if settings.dims:
        core = losses.MatryoshkaLoss(model, core, matryoshka_dims=list(settings.dims))
    return _Part("contrast", data, core, settings.steps, settings.learning_rate, 0.8)


def static_rows(pairs: Path, draws: int, seed: int) -> list[tuple[str, str]]:
    """Return (query, passage) rows: those of the stage `contrast`, drawn several times, and pieces of kept texts."""
    found: dict[tuple[str, str], None] = {}
    for draw in range(draws):
        found.update(((row.query, row.passage[:_CHARACTERS]), None) for row in contrast_rows(pairs, seed + draw))
    sampler = Sampler(pairs, Sizes(prompts=("", "")), seed=seed)
    for kind in ("keep", "crossing"):
        before, step, stale = len(found), 0, 0
        while sampler.has(kind) and len(found) - before < draws * _KEPT_ROWS and stale < _STALE:
            batch, known = sampler.draw(kind, step), len(found)
            assert isinstance(batch, Texts)
            found.update(((query, passage), None) for query, passage in zip(batch.queries, batch.passages, strict=True))
            step, stale = step + 1, stale + 1 if len(found) == known else 0
    return [(query, passage) for query, passage in found if query.strip() and passage.strip() and query != passage]


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the two trainings: rows, loss, batches, rate, and where the stage's progress stands at its start."""

    name: str
    rows: Dataset
    loss: Any
    steps: int
    rate: float
    share: float


def _train(
    model: SentenceTransformer,
    part: _Part,
    folder: Path,
    settings: StaticSettings,
    seed: int,
    tell: Tell,
    watch: DevWatch | None,
) -> bool:
    """Train and return whether this process is the one that writes."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.base.sampler import BatchSamplers

    arguments = SentenceTransformerTrainingArguments(
        **shared_arguments(folder / part.name, seed),
        max_steps=part.steps,
        per_device_train_batch_size=min(settings.batch, len(part.rows)),
        learning_rate=part.rate,
        warmup_steps=0.05,
        lr_scheduler_type="cosine",
        max_grad_norm=0.0,  # Adam knows no scale, and one text that means nearly zero would outweigh all others
        batch_sampler=BatchSamplers.NO_DUPLICATES if part.name == "contrast" else BatchSamplers.BATCH_SAMPLER,
        save_steps=max(1, part.steps // 3),
        logging_steps=max(1, min(20, part.steps // 10)),
    )
    without_card(model)
    trainer = SentenceTransformerTrainer(
        model=model, args=on_one_gpu(arguments), train_dataset=part.rows, loss=part.loss
    )
    return run_trainer(trainer, part.name, folder, tell, watch, done=part.share, width=0.2)


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
