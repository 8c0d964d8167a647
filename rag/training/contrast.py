"""Contrastive tuning on (query, passage) pairs by sentence-transformers' trainer.

InfoNCE with gradient caching (a batch larger than memory), against other passages *and* other queries both ways; a
guide model drops false negatives (GIST), mined negatives are kept only well below the positive's score, and Matryoshka
dimensions can be trained along. The trainer brings checkpoints, mixed precision and ``accelerate launch``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexer.errors import ArgumentError
from rag.training.batches import Pairs, Sampler, Sizes
from rag.training.recipe import ContrastSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

Tell = Callable[[float, Mapping[str, Any]], None]


def tune(model: Path, pairs: Path, out: Path, folder: Path, settings: ContrastSettings, seed: int, tell: Tell) -> Path:
    """Write the tuned model; checkpoints in ``folder`` are gone on from.

    Out of memory, the micro-batch is halved and the stage goes on from its last checkpoint.

    Raises:
        ArgumentError: there are no pairs, or not even a micro-batch of one fits.
    """
    micro = settings.micro_batch
    while True:
        try:
            return _tune(model, pairs, out, folder, settings, seed, tell, micro)
        except (MemoryError, RuntimeError) as error:
            if "out of memory" not in str(error).lower() and not isinstance(error, MemoryError):
                raise
            if micro == 1:
                raise ArgumentError("max_length", "is too long for this machine: one pair does not fit") from error
            micro //= 2
            tell(0.0, {"micro_batch": micro})


def _tune(
    source: Path, pairs: Path, out: Path, folder: Path, settings: ContrastSettings, seed: int, tell: Tell, micro: int
) -> Path:
    import torch
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
    from transformers import TrainerCallback

    model = SentenceTransformer(str(source), local_files_only=True)
    model.max_seq_length = min(settings.max_length, model.max_seq_length or settings.max_length)
    body: Any = model[0]
    body.auto_model.get_input_embeddings().weight.requires_grad_(False)
    rows = pair_dataset(pairs, seed)
    if settings.negatives:
        rows = _with_negatives(rows, model, settings)
    loss = _loss(model, settings, micro)
    if settings.dims:
        loss = MatryoshkaLoss(model, loss, matryoshka_dims=list(settings.dims))

    class Tellers(TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                row = {"step": state.global_step, "kind": "contrast", "loss": {"contrast": float(logs["loss"])}}
                with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
                tell(state.global_step / max(1, state.max_steps), row)

    prompts = model.prompts or {}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=settings.epochs,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        warmup_steps=0.05,
        lr_scheduler_type="cosine",
        seed=seed,
        data_seed=seed,
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=1,
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        prompts={
            name: (prompts.get("query") if name == "anchor" else prompts.get("passage")) or ""
            for name in rows.column_names
        },
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=rows, loss=loss, callbacks=[Tellers()]
    )
    last = sorted((folder / "checkpoints").glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=bool(last))
    model.save(str(out), create_model_card=False)
    return out


def pair_dataset(pairs: Path, seed: int, bitext_draws: int = 200) -> Dataset:
    """Return ``anchor`` and ``positive``: questions in many languages, searches with titles, sentences and terms.

    Raises:
        ArgumentError: the folder holds no pairs.
    """
    from datasets import Dataset

    sampler = Sampler(pairs, Sizes(), seed)
    rows: dict[tuple[str, str], None] = {}
    for step in range(bitext_draws):
        for kind in ("bitext", "terms", "questions", "titles"):
            if not sampler.has(kind):
                continue
            batch = sampler.draw(kind, step)
            if isinstance(batch, Pairs):
                sides = zip(batch.left, batch.right, strict=True)
            else:
                sides = zip(batch.questions, batch.passages, strict=True)  # type: ignore[union-attr]
            rows.update(dict.fromkeys((one, other) for one, other in sides if one.strip() and other.strip()))
    if not rows:
        raise ArgumentError("pairs", "hold no row to train on; run the recipe's pairs stage over a folder with data")
    return Dataset.from_dict({"anchor": [one for one, _ in rows], "positive": [other for _, other in rows]})


def _with_negatives(rows: Dataset, model: SentenceTransformer, settings: ContrastSettings) -> Dataset:
    """Return the rows with mined negatives, each below the positive's score by the margin (positive-aware mining)."""
    from sentence_transformers.util import mine_hard_negatives

    return mine_hard_negatives(
        rows,
        model,
        num_negatives=settings.negatives,
        range_min=1,
        range_max=50,
        relative_margin=1.0 - settings.negatives_margin,
        output_format="n-tuple",
        query_prompt=(model.prompts or {}).get("query"),
        corpus_prompt=(model.prompts or {}).get("passage"),
        verbose=False,
    )


def _loss(model: SentenceTransformer, settings: ContrastSettings, micro: int) -> Any:
    from sentence_transformers import SentenceTransformer as Loaded
    from sentence_transformers.sentence_transformer import losses

    if settings.guide:
        guide = Loaded(settings.guide, local_files_only=True)
        return losses.CachedGISTEmbedLoss(model, guide, temperature=0.02, mini_batch_size=micro)
    return losses.CachedMultipleNegativesRankingLoss(
        model,
        scale=50.0,
        mini_batch_size=micro,
        directions=("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
    )
