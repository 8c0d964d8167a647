"""Work that a second thread takes over: its result is the caller's, whoever did it, and nobody waits for a turn."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.beside import Beside, shared_out

LONG_S = 30.0
N_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def taken() -> Iterator[None]:
    """The second thread is busy with somebody else's work."""
    begun, free, apart = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        free.wait(LONG_S)

    def somebody() -> None:
        with Beside(wait) as beside:
            apart.wait(LONG_S)
            beside.result()

    other = threading.Thread(target=somebody)
    other.start()
    # On one core nothing is handed over, and the other waits by itself later: either way it is not done.
    begun.wait(LONG_S if N_CORES > 1 else 0)
    try:
        yield
    finally:
        free.set()
        apart.set()
        other.join()


def test_the_work_is_done_once_whoever_does_it() -> None:
    done: list[str] = []

    def work() -> str:
        done.append(threading.current_thread().name)
        return "found"

    with Beside(work) as beside:
        assert beside.result() == "found"
    with taken(), Beside(work) as beside:
        assert beside.result() == "found"
    assert len(done) == 2
    assert done[1] == threading.current_thread().name


@pytest.mark.skipif(N_CORES < 2, reason="needs two cores")
def test_it_runs_beside_its_caller() -> None:
    begun = threading.Event()

    def work() -> int:
        begun.set()
        return threading.get_ident()

    with Beside(work) as beside:
        assert begun.wait(LONG_S), "nothing began while its caller was busy"
        assert beside.result() != threading.get_ident()


def test_who_is_not_alone_does_all_of_it() -> None:
    with taken():
        assert shared_out([threading.get_ident] * 5) == [threading.get_ident()] * 5


@pytest.mark.skipif(N_CORES < 2, reason="needs two cores")
@pytest.mark.parametrize("how", ["one", "several"])
def test_what_was_begun_and_does_not_end_is_done_by_the_caller(how: str) -> None:
    begun, free, me = threading.Event(), threading.Event(), threading.get_ident()

    def work() -> int:
        if threading.get_ident() == me:
            assert begun.wait(LONG_S), "the other thread took nothing while its caller was busy"
        else:
            begun.set()
            free.wait(LONG_S)
        return threading.get_ident()

    try:
        if how == "several":
            assert shared_out([work] * 3) == [me] * 3
        else:
            with Beside(work) as beside:
                assert begun.wait(LONG_S)
                assert beside.result() == me
    finally:
        free.set()


def test_an_error_reaches_the_caller() -> None:
    def fail() -> None:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"), Beside(fail) as beside:
        beside.result()
    with pytest.raises(ValueError, match="damaged"):
        shared_out([lambda: None, fail, lambda: None])
    assert shared_out([lambda: 1, lambda: 2]) == [1, 2]


def test_a_caller_that_fails_leaves_the_second_thread_to_others() -> None:
    with pytest.raises(KeyError), Beside(lambda: 1):
        raise KeyError
    with taken():
        pass
    with Beside(lambda: 2) as beside:
        assert beside.result() == 2


@given(st.lists(st.integers(), max_size=12))
def test_results_come_in_the_order_of_the_works(numbers: list[int]) -> None:
    assert shared_out([partial(int, number) for number in numbers]) == numbers


def test_work_shares_out_work_of_its_own() -> None:
    inner = [partial(int, number) for number in range(4)]
    assert shared_out([lambda: shared_out(inner)] * 3) == [[0, 1, 2, 3]] * 3


def test_a_process_that_was_forked_works_on() -> None:
    with Beside(lambda: 1) as beside:
        beside.result()
    child = os.fork()
    if not child:
        with Beside(lambda: 7) as beside:
            os._exit(beside.result())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
