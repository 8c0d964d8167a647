"""Two processes at one recipe: each reads its share of a batch, one writes, and both end with the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from rag.training.contrast_rows import contrast_rows
from rag.training.student import Student
from rag.training.trainers import on_one_gpu
from tests.rag.made_training import data_folder, unigram_model

RECIPE = """
[start]
from = "{start}"
[[stage]]
kind = "pairs"
[[stage]]
kind = "mlm"
sources = ["notes/aci_bench"]
steps = 2
batch = 2
max_length = 24
duplication = 1
[[stage]]
kind = "contrast"
steps = 2
batch = 4
micro_batch = 2
learning_rate = 1e-3
max_length = 24
"""


def test_a_recipe_runs_in_two_processes_that_accelerate_launches(tmp_path):
    model = unigram_model(tmp_path / "model")
    data = data_folder(tmp_path / "data", concepts=20)
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.format(start=model.as_posix()))
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "api.cli"]
    arguments = ["--home", str(tmp_path / "home"), "train", str(recipe)]
    arguments += ["--out", str(tmp_path / "run"), "--data", str(data), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *launch, *arguments],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    log = [json.loads(line) for line in (tmp_path / "run" / "03-contrast" / "log.jsonl").read_text().splitlines()]
    state = json.loads(next((tmp_path / "run" / "03-contrast").rglob("trainer_state.json")).read_text())
    assert [row["step"] for row in log] == sorted({row["step"] for row in log})  # one process tells
    rows = len(contrast_rows(tmp_path / "run" / "pairs", 0))
    assert state["epoch"] > 1.5 * 2 / (rows // 4)  # two steps read a batch in each process: twice what one would
    started, tuned = (Student(folder).eval() for folder in (model, tmp_path / "run" / "model"))
    with torch.inference_mode():
        assert not torch.allclose(started.encode(["fever"], ""), tuned.encode(["fever"], ""), atol=1e-4)


@pytest.mark.parametrize("gpus", [0, 1, 3])
def test_a_process_alone_trains_on_one_gpu_however_many_it_sees(tmp_path, monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    arguments = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=5, report_to=[])
    assert on_one_gpu(arguments).n_gpu == min(gpus, 1)
    assert arguments.train_batch_size == 5
