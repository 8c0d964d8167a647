"""Contrastive tuning on (query, passage) pairs by sentence-transformers' trainer.

InfoNCE with gradient caching (a batch larger than memory), against other passages *and* other queries both ways; a
guide model drops false negatives (GIST), Matryoshka dimensions and rounded vectors can be trained along. The trainer
brings checkpoints, mixed precision and ``accelerate launch``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from indexer.encoders.catalog import model_folder
from indexer.errors import ArgumentError
from rag.training.bounds import ROUNDED
from rag.training.contrast_rows import contrast_dataset, contrast_rows
from rag.training.memory import within_memory
from rag.training.settings import ContrastSettings
from rag.training.student import both_prompts
from rag.training.trainers import Tell, on_one_gpu, run_trainer, save_model, shared_arguments, without_card
from rag.training.watch import DevWatch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def tune(
    model: Path,
    pairs: Path,
    out: Path,
    folder: Path,
    settings: ContrastSettings,
    seed: int,
    tell: Tell,
    watch: DevWatch | None = None,
) -> Path:
    """Write the tuned model; checkpoints in ``folder`` are gone on from.

    Out of memory, the micro-batch is halved and the same step done again.

    Raises:
        ArgumentError: there are no pairs, a setting is not allowed, or not even a micro-batch of one fits.
    """
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer

    torch.manual_seed(seed)  # a checkpoint without a pooler gets a random one, which no vector passes
    tuned = SentenceTransformer(str(model), local_files_only=True)
    without_card(tuned)
    longest = tuned.max_seq_length
    tuned.max_seq_length = min(settings.max_length, longest or settings.max_length)
    body: Any = tuned[0]
    body.auto_model.get_input_embeddings().weight.requires_grad_(not settings.freeze_embeddings)
    rows = contrast_dataset(contrast_rows(pairs, seed), tuned, settings, seed)
    core, loss = build_loss(tuned, settings)

    def shrink() -> bool:
        if core.mini_batch_size == 1:
            return False
        core.mini_batch_size //= 2
        tell(0.0, {"micro_batch": core.mini_batch_size})
        return True

    class Trainer(SentenceTransformerTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            def step() -> torch.Tensor:
                model.zero_grad()  # what a step that did not fit left behind
                found: torch.Tensor = super(Trainer, self).training_step(model, dict(inputs), *args, **kwargs)
                return found

            return within_memory(step, shrink)

    trainer = Trainer(
        model=tuned,
        args=on_one_gpu(_arguments(tuned, folder, settings, seed, rows.column_names)),
        train_dataset=rows,
        loss=loss,
    )
    first = run_trainer(trainer, "contrast", folder, tell, watch)
    tuned.max_seq_length = longest  # the model reads as long a text as before; only its training was cut
    if first:
        save_model(tuned, out)
    return out


def build_loss(model: SentenceTransformer, settings: ContrastSettings) -> tuple[Any, Any]:
    """Return the cached loss, whose ``mini_batch_size`` is the micro-batch, and what the trainer takes.

    Raises:
        ArgumentError: a dimension or a way of rounding that there is not.
        EncoderUnavailableError: the guide is not on this machine.
    """
    from sentence_transformers import SentenceTransformer as Loaded
    from sentence_transformers.sentence_transformer import losses

    if settings.guide:
        guide = Loaded(str(model_folder(settings.guide)), local_files_only=True)
        core: Any = losses.CachedGISTEmbedLoss(model, guide, temperature=0.02, mini_batch_size=settings.micro_batch)
    else:
        core = losses.CachedMultipleNegativesRankingLoss(
            model,
            scale=50.0,
            mini_batch_size=settings.micro_batch,
            directions=("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
        )
    if settings.rounded:
        if settings.rounded not in ROUNDED:
            raise ArgumentError("contrast.rounded", f"must be one of {', '.join(ROUNDED)}")
        core.calculate_loss = _also_rounded(core.calculate_loss, settings.rounded)
    if not settings.dims:
        return core, core
    size = model.get_embedding_dimension() or 0
    if max(settings.dims) != size or min(settings.dims) < 1:
        raise ArgumentError("contrast.dims", f"must lie between 1 and the model's own {size}, which must be among them")
    return core, losses.MatryoshkaLoss(model, core, matryoshka_dims=list(settings.dims))


def rounded(rows: torch.Tensor, kind: str) -> torch.Tensor:
    """Return ``(N, D)`` rows as a store would keep them: 255 levels of the row's largest value, or signs."""
    if kind == "binary":
        return torch.where(rows >= 0, 1.0, -1.0).to(rows.dtype)
    scale = rows.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127.0
    return torch.round(rows / scale) * scale


def _also_rounded(calculate: Callable[..., torch.Tensor], kind: str) -> Callable[..., torch.Tensor]:
    """Return a cached loss's calculation that adds the loss of the rounded vectors.

    Rounding has no slope: its gradient goes straight through to the vector that was rounded (Bengio et al. 2013).
    """

    def both(reps: list[list[torch.Tensor]], *args: Any, **kwargs: Any) -> torch.Tensor:
        total = calculate(reps, *args, **kwargs)
        kept = [[rounded(part.detach(), kind).requires_grad_() for part in column] for column in reps]
        total = total + calculate(kept, *args, **kwargs)
        for column, copies in zip(reps, kept, strict=True):
            for part, copy in zip(column, copies, strict=True):
                if part.grad is not None and copy.grad is not None:
                    part.grad += copy.grad
        return total

    return both


def _arguments(tuned: Any, folder: Path, settings: ContrastSettings, seed: int, columns: list[str]) -> Any:
    from sentence_transformers import SentenceTransformerTrainingArguments
    from sentence_transformers.base.sampler import BatchSamplers

    query, passage = both_prompts(tuned.prompts or {})
    return SentenceTransformerTrainingArguments(
        **shared_arguments(folder / "checkpoints", seed),
        num_train_epochs=settings.epochs,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        warmup_steps=0.05,
        lr_scheduler_type="cosine",
        batch_sampler=BatchSamplers.NO_DUPLICATES,  # a label of many passages would be its own negative
        save_steps=settings.checkpoint_steps,
        logging_steps=max(1, min(10, settings.steps // 10)) if settings.steps > 0 else 10,
        prompts={name: query if name == "anchor" else passage for name in columns},
    )
