"""Which notes are replaced by others, also where they replace each other in a circle."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from indexer.store.distinct import distinct, without

Ids = NDArray[np.int64]


def replaced(sources: Ids, targets: Ids, order: Ids) -> Ids:
    """Return the notes that do not show because another replaces them: ``sources[i]`` replaces ``targets[i]``.

    In a circle every note is replaced; there the one whose ``order`` (of the source, when it was stored) is highest
    shows, unless a note outside of the circle replaces it too. A note that replaces itself replaces nothing.

    >>> replaced(np.array([2, 3]), np.array([1, 2]), np.array([20, 30])).tolist()
    [1, 2]
    >>> replaced(np.array([1, 2]), np.array([2, 1]), np.array([10, 20])).tolist()
    [1]
    """
    real = sources != targets
    sources, targets, order = sources[real], targets[real], order[real]
    hidden = distinct(targets)
    inner = np.isin(sources, hidden) & np.isin(targets, sources)
    if not inner.any():
        return hidden
    graph: dict[int, list[int]] = {}
    for source, target in zip(sources[inner].tolist(), targets[inner].tolist(), strict=True):
        graph.setdefault(source, []).append(target)
    stored = dict(zip(sources.tolist(), order.tolist(), strict=True))
    shown = []
    for circle in _circles(graph):
        last = max(circle, key=lambda note: (stored[note], note))
        replacers = sources[targets == last].tolist()
        if circle.issuperset(replacers):
            shown.append(last)
    return without(hidden, np.array(shown, np.int64))


def _circles(graph: dict[int, list[int]]) -> Iterator[set[int]]:
    """Yield the strongly connected parts with more than one note (Tarjan 1972, without recursion)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    for start in graph:
        if start in index:
            continue
        work = [(start, iter(graph[start]))]
        index[start] = low[start] = len(index)
        stack.append(start)
        on_stack.add(start)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(graph.get(target, ()))))
                    break
                if target in on_stack:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    part = {stack.pop()}
                    while node not in part:
                        part.add(stack.pop())
                    on_stack -= part
                    if len(part) > 1:
                        yield part
