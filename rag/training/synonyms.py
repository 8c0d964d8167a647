"""Terminology alignment: one concept's names, in any language, come together (SapBERT's multi-similarity loss).

Graded (as in HiPrBERT), a batch also holds parents and siblings: a synonym is nearer than a parent, a parent nearer
than a sibling, a sibling nearer than an unrelated concept.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from indexer.errors import ArgumentError
from rag.training.align import save_average
from rag.training.checkpoint import load_checkpoint, save_checkpoint, write_tensors
from rag.training.heldout import read_rows
from rag.training.losses import alike
from rag.training.memory import within_memory
from rag.training.settings import SynonymSettings
from rag.training.student import Student

Relations = list[tuple[int, int, str]]
_RELATED = {"synonym": 0, "parent": 1, "sibling": 2, "unrelated": 3}


def multi_similarity(rows: Tensor, concepts: Sequence[object]) -> Tensor:
    """Return the multi-similarity loss of unit rows ``(N, D)`` with hard mining, as published (Wang et al. 2019).

    A negative counts when it is nearer than the farthest positive less ``gap``, a positive when it is farther than the
    nearest negative plus ``gap``.
    """
    alpha, beta, base, gap = 2.0, 50.0, 0.5, 0.1
    similar = rows @ rows.T  # (N, N)
    same = alike(concepts)
    positive = same & ~torch.eye(len(concepts), dtype=torch.bool)
    nearest_negative = similar.masked_fill(same, -2.0).amax(1, keepdim=True)
    farthest_positive = similar.masked_fill(~positive, 2.0).amin(1, keepdim=True)
    hard_negative = ~same & (similar + gap > farthest_positive)
    hard_positive = positive & (similar - gap < nearest_negative)
    pulled = (torch.exp(-alpha * (similar - base)) * hard_positive).sum(1)
    pushed = (torch.exp(beta * (similar - base)) * hard_negative).sum(1)
    return (torch.log1p(pulled) / alpha + torch.log1p(pushed) / beta).mean()


def graded(rows: Tensor, relations: Sequence[tuple[int, int, str]], margin: float = 0.05) -> Tensor:
    """Return the hinge loss of the order synonym > parent > sibling > unrelated.

    Args:
        rows: unit rows ``(N, D)``.
        relations: ``(anchor, other, relation)`` indices; pairs of one anchor are compared grade against grade.
        margin: how far neighbouring grades are to be apart.
    """
    by_anchor: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for anchor, other, relation in relations:
        by_anchor[anchor].append((_RELATED[relation], other))
    nearer, farther, steps = [], [], []
    for anchor, others in by_anchor.items():
        for grade, other in others:
            for later, far in others:
                if later > grade:
                    nearer.append((anchor, other))
                    farther.append((anchor, far))
                    steps.append(float(later - grade))
    if not steps:
        return rows.sum() * 0.0
    close, distant = torch.tensor(nearer), torch.tensor(farther)
    gap = (rows[close[:, 0]] * rows[close[:, 1]]).sum(1) - (rows[distant[:, 0]] * rows[distant[:, 1]]).sum(1)
    return torch.relu(margin * torch.tensor(steps) - gap).mean()


def align_synonyms(
    model: Path,
    pairs: Path,
    out: Path,
    settings: SynonymSettings,
    seed: int,
    tell: Callable[[float, Mapping[str, Any]], None],
) -> Path:
    """Write the model after ``steps`` batches of synonym sets; a killed stage goes on from its last checkpoint.

    Raises:
        ArgumentError: there are no concepts with two names, or the checkpoint is of another architecture.
        SourceError: the checkpoint or the pairs are damaged.
    """
    concepts = list(read_rows(pairs / "terms.jsonl"))
    if not concepts:
        raise ArgumentError("pairs", "hold no terms: no concept has a name in English and one in another language")
    student = Student(model, settings.max_length)
    parameters = student.trained()
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=0.01)
    folder = out.parent
    start = (load_checkpoint(folder, {"weight": parameters}, optimizer) or {"step": 0})["step"]
    by_parent: dict[str, list[int]] = defaultdict(list)
    where = {row["id"]: number for number, row in enumerate(concepts)}
    for number, row in enumerate(concepts):
        for parent in row["parents"]:
            by_parent[parent].append(number)
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        for step in range(start, settings.steps):
            chance = random.Random(f"{seed}/{step}")  # noqa: S311 - no secret
            texts, keys, relations = _batch(concepts, where, by_parent, settings, chance)

            def backward(texts: list[str] = texts, keys: list[str] = keys, relations: Relations = relations) -> Tensor:
                optimizer.zero_grad(set_to_none=True)
                rows = student.encode(texts, student.prompts[0])
                loss = multi_similarity(rows, keys)
                if settings.graded:
                    loss = loss + graded(rows, relations)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * (1.0 - step / settings.steps)
            loss = within_memory(backward, student.shrink)
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            record = {"step": step + 1, "kind": "synonyms", "loss": {"synonyms": round(loss.item(), 4)}}
            log.write(json.dumps(record) + "\n")
            tell((step + 1) / settings.steps, record)
            if (step + 1) % 100 == 0 or step + 1 == settings.steps:
                save_checkpoint(folder, {"weight": parameters}, optimizer, {"step": step + 1})
    return _finish(model, folder, out, parameters)


def _batch(
    concepts: Sequence[Mapping[str, Any]],
    where: Mapping[str, int],
    by_parent: Mapping[str, list[int]],
    settings: SynonymSettings,
    chance: random.Random,
) -> tuple[list[str], list[str], list[tuple[int, int, str]]]:
    """Return texts, their concepts, and relations between them: two names a concept, and its family where graded."""
    texts: list[str] = []
    keys: list[str] = []
    relations: list[tuple[int, int, str]] = []
    drawn: set[int] = set()

    def put(number: int, names: int) -> list[int]:
        drawn.add(number)
        row = concepts[number]
        known = sorted({term for terms in row["terms"].values() for term in terms})
        chosen = chance.sample(known, min(names, len(known)))
        texts.extend(chosen)
        keys.extend([row["id"]] * len(chosen))
        return list(range(len(texts) - len(chosen), len(texts)))

    while len(texts) < settings.batch and len(drawn) < len(concepts):
        number = chance.randrange(len(concepts))
        if number in drawn:
            continue
        own = put(number, 2)
        relations.extend((own[0], other, "synonym") for other in own[1:])
        if not settings.graded:
            continue
        family = [(where[parent], "parent") for parent in concepts[number]["parents"] if parent in where][:1]
        near = [one for parent in concepts[number]["parents"] for one in by_parent[parent] if one != number]
        family += [(chance.choice(near), "sibling")] if near else []
        for other, relation in family:
            if other not in drawn:
                relations.append((own[0], put(other, 1)[0], relation))
        if own[0] > 0:
            relations.append((own[0], 0, "unrelated"))
    return texts, keys, relations


def _finish(model: Path, folder: Path, out: Path, parameters: Mapping[str, Tensor]) -> Path:
    weights = folder / "tuned.safetensors"
    write_tensors(weights, {name: value.detach().contiguous() for name, value in parameters.items()})
    save_average(model, weights, out)
    return out
