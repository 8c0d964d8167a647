"""Losses over unit rows. N pairs, D dim; all take ``(N, D)`` float32 and return a scalar."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean cosine distance of the rows to the teacher's."""
    return (1.0 - (student * teacher).sum(-1)).mean()


def alike(keys: Sequence[object]) -> Tensor:
    """Return which of N keys are equal, ``(N, N)``."""
    numbers: dict[object, int] = {}
    codes = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])
    return codes[:, None] == codes[None, :]


def contrast(left: Tensor, right: Tensor, same: Sequence[object], scale: float) -> Tensor:
    """Return InfoNCE both ways, the other rows of the *own* side being negatives too.

    A row must find its partner among all partners and among its own neighbours, which may be of its own language: a
    vector that says the language before the meaning loses on them. Rows with an equal ``same`` key are no negatives.
    """
    n = len(left)
    equal = alike(same)  # (N, N)
    diagonal = torch.eye(n, dtype=torch.bool)
    across = (scale * left @ right.T).masked_fill(equal & ~diagonal, float("-inf"))
    target = torch.arange(n)
    forward = torch.cat([across, (scale * left @ left.T).masked_fill(equal, float("-inf"))], 1)  # (N, 2N)
    back = torch.cat([across.T, (scale * right @ right.T).masked_fill(equal, float("-inf"))], 1)
    loss = torch.nn.functional.cross_entropy
    return 0.5 * (loss(forward, target) + loss(back, target))


def retrieval(queries: Tensor, passages: Tensor, same: Sequence[object], scale: float) -> Tensor:
    """Return InfoNCE from queries to passages, and a fifth of the way back."""
    equal = alike(same) & ~torch.eye(len(same), dtype=torch.bool)
    logits = (scale * queries @ passages.T).masked_fill(equal, float("-inf"))
    target = torch.arange(len(same))
    loss = torch.nn.functional.cross_entropy
    return loss(logits, target) + 0.2 * loss(logits.T, target)


def kept_structure(
    queries: Tensor, passages: Tensor, teacher_queries: Tensor, teacher_passages: Tensor, scale: float
) -> Tensor:
    """Return how far the similarity distributions moved: query -> passage and passage -> other passages (KL)."""
    divergence = torch.nn.functional.kl_div
    own = torch.eye(len(passages), dtype=torch.bool)

    def logs(rows: Tensor, columns: Tensor, inside: bool) -> Tensor:
        scores = scale * rows @ columns.T
        # a large negative number and not -inf: 0 * (-inf - -inf) is not a number
        return torch.log_softmax(scores.masked_fill(own, -1e4) if inside else scores, -1)

    towards = divergence(
        logs(queries, passages, False),
        logs(teacher_queries, teacher_passages, False),
        log_target=True,
        reduction="batchmean",
    )
    among = divergence(
        logs(passages, passages, True),
        logs(teacher_passages, teacher_passages, True),
        log_target=True,
        reduction="batchmean",
    )
    return towards + among
