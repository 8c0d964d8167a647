"""Losses, student and teacher, and the loop of alignment: killed, out of memory, watched, gone on with."""

from __future__ import annotations

import errno
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from indexer.errors import ArgumentError, SourceError, StorageFullError
from rag.training import losses, synonyms
from rag.training.align import align, save_average
from rag.training.batches import Sampler, Sizes
from rag.training.checkpoint import load_checkpoint, save_checkpoint, told_when_full
from rag.training.heldout import read_rows
from rag.training.settings import AlignSettings, SynonymSettings
from rag.training.student import Student, Teacher
from rag.training.synonyms import align_synonyms, graded, multi_similarity
from rag.training.watch import DevWatch, student_encode
from tests.rag.made_training import unigram_model

SIZES = Sizes(bitext_characters=200, terms=6, statements=3, questions=4, titles=3, keep=4)
ALL_KINDS = ("bitext", "terms", "statements", "questions", "titles", "keep")


# losses


def unit(*rows: list[float]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


def test_contrast_by_hand_and_equal_keys_are_no_negatives():
    rows = unit([1.0, 0.0], [0.0, 1.0])
    # each row: its partner at 1, the other partner and the own neighbour at 0
    expected = float(torch.log(1 + 2 * torch.exp(torch.tensor(-5.0))))
    assert float(losses.contrast(rows, rows, ["a", "b"], 5.0)) == pytest.approx(expected, rel=1e-5)
    assert float(losses.contrast(rows, rows, ["a", "a"], 5.0)) == pytest.approx(0.0, abs=1e-6)


def test_contrast_punishes_vectors_that_say_the_language_first():
    meaning_first = unit([1.0, 0.2], [0.2, 1.0]), unit([1.0, 0.3], [0.3, 1.0])
    language_first = unit([1.0, 0.0, 5.0], [0.0, 1.0, 5.0]), unit([1.0, 0.0, -5.0], [0.0, 1.0, -5.0])
    assert losses.contrast(*language_first, ["a", "b"], 20.0) > 2 * losses.contrast(*meaning_first, ["a", "b"], 20.0)


def test_kept_structure_is_nought_for_the_teacher_itself_and_grows():
    rows = unit([1.0, 0.1, 0.0], [0.2, 1.0, 0.3], [0.0, 0.4, 1.0])
    other = unit([1.0, 0.9, 0.0], [0.2, 1.0, 0.3], [0.9, 0.4, 1.0])
    assert float(losses.kept_structure(rows, rows, rows, rows, 40.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(losses.kept_structure(other, other, rows, rows, 40.0)) > 0.01


def test_multi_similarity_falls_when_names_of_a_concept_come_together():
    apart = unit([1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0])
    together = unit([1.0, 0.0], [1.0, 0.05], [0.0, 1.0], [0.05, 1.0])
    assert multi_similarity(together, "aabb") < multi_similarity(apart, "aabb")


def test_grades_are_ordered_synonym_parent_sibling_unrelated():
    relations = [(0, 1, "synonym"), (0, 2, "parent"), (0, 3, "sibling"), (0, 4, "unrelated")]
    angles = torch.tensor([0.0, 0.2, 0.6, 1.0, 1.6])
    right = torch.stack([torch.cos(angles), torch.sin(angles)], 1)
    assert float(graded(right, relations)) == 0.0
    for first, second in ((1, 2), (2, 3), (3, 4)):
        swapped = right.clone()
        swapped[[first, second]] = right[[second, first]]
        assert float(graded(swapped, relations)) > 0.0


# student, teacher, alignment


def test_graded_batches_hold_the_family_of_their_concepts(model, pairs, tmp_path, monkeypatch):
    seen: list[str] = []

    def told(rows, relations, **options):
        seen.extend(relation for *_, relation in relations)
        return graded(rows, relations, **options)

    monkeypatch.setattr(synonyms, "graded", told)
    (tmp_path / "made").mkdir()
    terms = [row for row in read_rows(pairs / "terms.jsonl") if row["source"] == "terms/hpo"]
    (tmp_path / "terms.jsonl").write_text("".join(json.dumps(row) + "\n" for row in terms), encoding="utf-8")
    settings = SynonymSettings(steps=3, batch=40, graded=True)
    made = align_synonyms(model, tmp_path, tmp_path / "made" / "model", settings, 0, lambda share, row: None)
    assert set(seen) == {"synonym", "parent", "sibling", "unrelated"}
    start, tuned = Student(model).eval(), Student(made).eval()
    with torch.inference_mode():
        assert not torch.allclose(start.encode(["fever"], ""), tuned.encode(["fever"], ""), atol=1e-5)
    (tmp_path / "terms.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ArgumentError, match="hold no terms"):
        align_synonyms(model, tmp_path, tmp_path / "none" / "model", settings, 0, lambda share, row: None)


def test_a_vector_does_not_depend_on_its_neighbours_and_order_is_kept(model):
    student = Student(model).eval()
    texts = ["fever", "a long text of cough and pain and rash", "発熱", "x"]
    with torch.inference_mode():
        together = student.encode(texts, "query: ")
        alone = torch.cat([student.encode([text], "query: ") for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_the_teacher_remembers_and_stays_as_it_was(model):
    teacher = Teacher(Student(model))
    first = teacher.encode(["fever", "pain"], "query: ")
    torch.testing.assert_close(teacher.encode(["pain", "fever"], "query: "), first.flip(0))
    assert not first.requires_grad


def test_alignment_brings_translations_nearer_and_leaves_embeddings_alone(model, pairs, tmp_path):
    sampler = Sampler(pairs, SIZES)
    student, teacher = Student(model, 48), Teacher(Student(model, 48))
    frozen = student.body.get_input_embeddings().weight.clone()
    rows: list[dict] = []
    settings = AlignSettings(cycle=("bitext",), steps=30, learning_rate=3e-3, average=0.5)
    average = align(student, teacher, sampler, settings, tmp_path, rows.append)
    first, last = [np.mean([sum(row["loss"].values()) for row in part]) for part in (rows[:5], rows[-5:])]
    assert last < first
    assert torch.equal(student.body.get_input_embeddings().weight, frozen)
    save_average(model, average, tmp_path / "out", 1.0)
    save_average(model, average, tmp_path / "start", 0.0)
    with torch.inference_mode():
        start = Student(model).eval().encode(["fever"], "")
        torch.testing.assert_close(Student(tmp_path / "start").eval().encode(["fever"], ""), start)
        assert not torch.allclose(Student(tmp_path / "out").eval().encode(["fever"], ""), start, atol=1e-3)


def test_a_killed_run_goes_on_and_ends_like_one_that_was_not(model, pairs, tmp_path):
    settings = AlignSettings(cycle=ALL_KINDS, steps=12, learning_rate=1e-3)

    class KilledError(Exception):
        pass

    def kill(row: dict) -> None:
        if row["step"] == 7:
            raise KilledError

    def run(folder: Path, on_step=None) -> Path:
        student, teacher = Student(model, 48), Teacher(Student(model, 48))
        return align(student, teacher, Sampler(pairs, SIZES), settings, folder, on_step, checkpoint_minutes=0.0)

    whole = run(tmp_path / "whole")
    with pytest.raises(KilledError):
        run(tmp_path / "cut", kill)
    seen: list[dict] = []
    again = run(tmp_path / "cut", seen.append)
    assert seen[0]["step"] == 7
    assert again.read_bytes() == whole.read_bytes()


def test_a_checkpoint_is_of_one_moment_wherever_its_writing_is_cut_off(tmp_path, monkeypatch):
    weights = {"w": torch.nn.Parameter(torch.ones(3))}
    optimizer = torch.optim.AdamW(weights.values(), lr=0.1)

    def step() -> None:
        weights["w"].sum().backward()
        optimizer.step()

    def state() -> list[float]:
        return [*weights["w"].tolist(), *optimizer.state[weights["w"]]["exp_avg"].tolist()]

    step()
    save_checkpoint(tmp_path, {"weight": weights}, optimizer, {"step": 1})
    first = state()
    step()
    for name in ("replace", "rename", "write_text"):  # whatever comes after the new tensors are written

        def cut_off(self, *rest, **options):
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, name, cut_off)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {"weight": weights}, optimizer, {"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(tmp_path, {"weight": weights}, optimizer) == {"step": 1}
    assert state() == first
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(SourceError, match=r"checkpoint\.safetensors is damaged; remove it"):
        load_checkpoint(tmp_path, {"weight": weights}, optimizer)


def test_a_full_disk_is_told_as_such_and_other_errors_are_left_alone(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    for error in (full, RuntimeError("I/O error: No space left on device (os error 28)")):
        with pytest.raises(StorageFullError, match="make room, and the same command goes on"), told_when_full(tmp_path):
            raise error
    with pytest.raises(RuntimeError, match="shape"), told_when_full(tmp_path):
        raise RuntimeError("shape")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(StorageFullError), told_when_full(tmp_path):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")  # torch.save
    with pytest.raises(SourceError), told_when_full(tmp_path):
        raise SourceError("a file")


def test_alignment_out_of_memory_reads_smaller_chunks_and_ends_the_same(model, pairs, tmp_path, monkeypatch):
    settings = AlignSettings(cycle=("bitext", "keep"), steps=2, learning_rate=1e-3)

    def run(folder: Path) -> dict[str, torch.Tensor]:
        teacher = Teacher(Student(model, 48))
        return load_file(align(Student(model, 48), teacher, Sampler(pairs, SIZES), settings, folder))

    whole = run(tmp_path / "whole")
    forward, refused = transformers.BertModel.forward, []

    def small_machine(self, input_ids, **options):
        if torch.is_grad_enabled() and len(input_ids) > 2:
            refused.append(len(input_ids))
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(transformers.BertModel, "forward", small_machine)
    tight = run(tmp_path / "tight")
    assert refused
    for name, value in whole.items():
        torch.testing.assert_close(tight[name], value, atol=1e-5, rtol=1e-3)


def test_alignment_is_watched_on_its_averaged_weights(model, pairs, tmp_path):
    settings = AlignSettings(cycle=("bitext",), steps=3, learning_rate=1e-2, average=0.9)
    scores, seen = iter([0.5, 0.7, 0.6]), []

    def score(encode) -> dict[str, float]:
        seen.append(encode(["fever"], "query"))
        return {"own": next(scores)}

    watch = DevWatch(score, 1.0, tmp_path, lambda share, row: None, iter(range(0, 10_000, 100)).__next__)
    average = align(
        Student(model, 48), Teacher(Student(model, 48)), Sampler(pairs, SIZES), settings, tmp_path, None, watch
    )
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 2
    save_average(model, average, tmp_path / "out")
    last = student_encode(Student(tmp_path / "out"))(["fever"], "query")
    np.testing.assert_allclose(seen[2], last, atol=1e-5)
    best = student_encode(Student(tmp_path / "best"))(["fever"], "query")
    np.testing.assert_allclose(seen[1], best, atol=1e-5)
    assert not np.allclose(best, last, atol=1e-4)


def test_a_model_is_tuned_and_scored_with_its_own_prompts(model, tmp_path):
    vectors = []
    for number, prompts in enumerate(({"query": "ask ", "document": "text "}, {})):
        folder = tmp_path / str(number)
        shutil.copytree(model, folder)
        path = folder / "config_sentence_transformers.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": prompts}))
        student = Student(folder)
        assert student.prompts == (prompts.get("query", ""), prompts.get("document", ""))
        vectors.append(student_encode(student)(["fever"], "passage"))
    bare = Student(model).eval()
    with torch.inference_mode():
        for found, text in zip(vectors, ("text fever", "fever"), strict=True):
            np.testing.assert_allclose(found, bare.encode([text], ""), atol=1e-5)


def test_a_checkpoint_of_another_architecture_is_refused(model, pairs, tmp_path):
    other = unigram_model(tmp_path / "other", hidden=16)
    settings = AlignSettings(cycle=("bitext",), steps=1)
    for folder, told in ((model, None), (other, "another architecture")):
        with pytest.raises(ArgumentError, match=told) if told else nullcontext():
            align(Student(folder), Teacher(Student(folder)), Sampler(pairs, SIZES), settings, tmp_path / "run")
