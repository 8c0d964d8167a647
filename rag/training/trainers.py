"""What the stages that run on transformers' trainer have in common: its arguments, who is told, where a run goes on.

The trainer writes a checkpoint's folder file by file; what a kill left half written is passed over.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rag.training.watch import DevWatch, model_encode

Tell = Callable[[float, Mapping[str, Any]], None]


def shared_arguments(checkpoints: Path, seed: int) -> dict[str, Any]:
    """Return the arguments of every stage's trainer: silent, seeded, its last checkpoint kept in ``checkpoints``."""
    return {
        "output_dir": str(checkpoints),
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_total_limit": 1,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def on_one_gpu(arguments: Any) -> Any:
    """Return a trainer's arguments with one GPU for this process; several are for as many processes.

    transformers would else split each batch among copies of the model on all GPUs that it sees, which know nothing of
    the rest of the batch: neither the positions that are asked of it nor the other passages.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def run_trainer(
    trainer: Any,
    kind: str,
    folder: Path,
    tell: Tell,
    watch: DevWatch | None = None,
    done: float = 0.0,
    width: float = 1.0,
) -> bool:
    """Train from the newest whole checkpoint on; return whether this process is the one that writes the result.

    Args:
        trainer: transformers' or sentence-transformers'; with ``watch``, of a sentence-transformers model.
        kind: what the losses are called in ``folder/log.jsonl``.
        folder: the stage's own.
        tell: told of each logged loss, with the share of the stage that is done.
        watch: looks at the model when it is due.
        done: the share of the stage that was done before this training.
        width: the share of the stage that this training is.
    """
    from transformers import PrinterCallback, TrainerCallback

    def share(state: Any) -> float:
        return done + width * float(state.global_step / max(1, state.max_steps))

    class Tellers(TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs and state.is_world_process_zero:
                row = {"step": state.global_step, "kind": kind, "loss": {kind: float(logs["loss"])}}
                with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
                tell(share(state), row)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if watch is not None and state.is_world_process_zero and watch.due():
                model = trainer.model
                watch.look(state.global_step, share(state), model_encode(model), lambda to: save_model(model, to))

    trainer.add_callback(Tellers())
    trainer.remove_callback(PrinterCallback)  # standard output is the command's
    trainer.train(resume_from_checkpoint=_last_checkpoint(Path(trainer.args.output_dir)))
    return bool(trainer.is_world_process_zero())


def without_card(model: Any) -> None:
    """Have a sentence-transformers model write no card into its trainer's checkpoints: it quotes rows it was taught."""
    model._create_model_card = lambda *_, **__: None


def save_model(model: Any, out: Path) -> None:
    """Write a sentence-transformers model, likewise without a card."""
    model.save(str(out), create_model_card=False)


def _last_checkpoint(folder: Path) -> str | None:
    """Return the newest whole checkpoint in a folder, ``None`` without one."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    return next((str(path) for path in found if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))  # written last
        for path in checkpoint.rglob("*.safetensors"):
            with safe_open(path, "pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    pickled = (path for pattern in ("*.pt", "*.pth", "*.bin") for path in checkpoint.rglob(pattern))
    return all(map(zipfile.is_zipfile, pickled))
