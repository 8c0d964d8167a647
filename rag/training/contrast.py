"""Contrastive tuning on (query, passage) pairs by sentence-transformers' trainer.

InfoNCE with gradient caching (a batch larger than memory), against other passages *and* other queries both ways; a
guide model drops false negatives (GIST), Matryoshka dimensions and rounded vectors can be trained along. The trainer
brings checkpoints, mixed precision and ``accelerate launch``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from indexer.errors import ArgumentError
from rag.training.bounds import ROUNDED
from rag.training.checkpoint import last_checkpoint, without_card
from rag.training.contrast_rows import contrast_dataset, contrast_rows
from rag.training.memory import within_memory
from rag.training.processes import on_one_gpu
from rag.training.recipe import ContrastSettings
from rag.training.student import both_prompts
from rag.training.watch import DevWatch, model_encode

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Tell = Callable[[float, Mapping[str, Any]], None]


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
    from transformers import PrinterCallback, TrainerCallback

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

    class Tellers(TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs and state.is_world_process_zero:
                row = {"step": state.global_step, "kind": "contrast", "loss": {"contrast": float(logs["loss"])}}
                with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
                tell(state.global_step / max(1, state.max_steps), row)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if watch is not None and state.is_world_process_zero and watch.due():
                share = state.global_step / max(1, state.max_steps)
                watch.look(state.global_step, share, model_encode(tuned), lambda to: _save(tuned, to))

    trainer = Trainer(
        model=tuned,
        args=on_one_gpu(_arguments(tuned, folder, settings, seed, rows.column_names)),
        train_dataset=rows,
        loss=loss,
        callbacks=[Tellers()],
    )
    trainer.remove_callback(PrinterCallback)  # standard output is the command's
    trainer.train(resume_from_checkpoint=last_checkpoint(folder / "checkpoints"))
    tuned.max_seq_length = longest  # the model reads as long a text as before; only its training was cut
    if trainer.is_world_process_zero():
        _save(tuned, out)
    return out


def build_loss(model: SentenceTransformer, settings: ContrastSettings) -> tuple[Any, Any]:
    """Return the cached loss, whose ``mini_batch_size`` is the micro-batch, and what the trainer takes.

    Raises:
        ArgumentError: a dimension or a way of rounding that there is not.
    """
    from sentence_transformers import SentenceTransformer as Loaded
    from sentence_transformers.sentence_transformer import losses

    if settings.guide:
        guide = Loaded(settings.guide, local_files_only=True)
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
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=settings.epochs,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        warmup_steps=0.05,
        lr_scheduler_type="cosine",
        seed=seed,
        data_seed=seed,
        batch_sampler=BatchSamplers.NO_DUPLICATES,  # a label of many passages would be its own negative
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=1,
        logging_steps=max(1, min(10, settings.steps // 10)) if settings.steps > 0 else 10,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        prompts={name: query if name == "anchor" else passage for name in columns},
    )


def _save(model: SentenceTransformer, out: Path) -> None:
    model.save(str(out), create_model_card=False)
