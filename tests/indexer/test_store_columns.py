"""What may be seen at a moment, against the rules once more in plain Python; columns on their way to disk."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from indexer.records import Scope, Status
from indexer.store.columns import UNDATED, ChunkRow, Columns, Deletion, VersionRow
from indexer.store.compaction import compacted
from indexer.store.selection import everything, select

IDS = "abcd"
VERSIONS = st.tuples(
    st.sampled_from(IDS),
    st.integers(1, 3),
    st.lists(st.sampled_from(IDS), max_size=2, unique=True),
    st.sampled_from([Status.FINAL, Status.FINAL, Status.SUPERSEDED, Status.ENTERED_IN_ERROR]),
    st.booleans(),
)


def _expected(history, deleted, moment):
    """Return what may be seen, from the words of the rules: ``history`` holds (id, version, time, replaces, status)."""
    current = {}
    for place, (note_id, version, time, replaces, status) in enumerate(history):
        if note_id not in deleted and (moment is None or time <= moment):
            current[note_id] = (version, (time, place), set(replaces) - {note_id}, status)
    by = {
        target: {source for source, row in current.items() if target in row[2] and row[3] != Status.ENTERED_IN_ERROR}
        for target in IDS
    }

    def above(start):
        reached, queue = set(), [start]
        while queue:
            for source in by[queue.pop()] - reached:
                reached.add(source)
                queue.append(source)
        return reached

    visible = {}
    for note_id, (version, order, _, status) in current.items():
        circle = {other for other in above(note_id) if note_id in above(other)} | {note_id}
        last = order == max(current[other][1] for other in circle)
        hidden = bool(by[note_id] - circle) or (len(circle) > 1 and not last)
        if not hidden and status not in (Status.ENTERED_IN_ERROR, Status.SUPERSEDED):
            visible[note_id] = version
    return visible


def _row(number, note_id, version, clock, replaces, status):
    patient = f"patient of {note_id}"
    texts = (patient, None, None, None, UNDATED, UNDATED, status.value, tuple(replaces), 2)
    return VersionRow(number, 1 + IDS.index(note_id), note_id, version, clock, *texts)


def _played(steps, reload):
    """Return the columns after the steps, and the history; a step that looks ends a batch."""
    columns, history, numbers, known, batch, clock = Columns.of({}, {}), [], {}, {}, [], 0
    for number, (note_id, gap, replaces, status, look) in enumerate(steps, start=1):
        clock += gap
        numbers[note_id] = numbers.get(note_id, 0) + 1
        history.append((note_id, numbers[note_id], clock, replaces, status))
        batch.append(_row(number, *history[-1]))
        if look or number == len(steps):
            chunks = [
                ChunkRow(2 * row.version_id + n, "en", row.note_id, bytes([row.version_id] * 32))
                for row in batch
                for n in range(2)
            ]
            columns, gone = columns.after(batch, chunks, (), known)
            assert not len(gone)
            known |= {row.note_id: row.note for row in batch}
            batch = []
            if reload:
                columns = Columns.of(columns.arrays(), columns.texts())
    return columns, history, numbers


def _seen(columns, moment):
    picks = everything(columns, moment).picks
    notes = columns.versions["note"][picks].tolist()
    return {
        IDS[note - 1]: version for note, version in zip(notes, columns.versions["version"][picks].tolist(), strict=True)
    }


@given(st.lists(VERSIONS, max_size=12), st.sets(st.sampled_from(IDS), max_size=2), st.integers(0, 40), st.booleans())
def test_what_may_be_seen_follows_the_rules(steps, deleted, moment, reload):
    columns, history, numbers = _played(steps, reload)
    before = _seen(columns, None)
    deletions = [Deletion(1 + IDS.index(one), numbers[one]) for one in sorted(deleted) if one in numbers]
    after, gone = columns.after((), (), deletions, {})
    expected = _expected(history, deleted, None)
    assert _seen(after, None) == expected
    assert _seen(after, moment) == _expected(history, deleted, moment)
    assert _seen(columns, None) == before == _expected(history, set(), None)
    dead = [n for n, row in enumerate(history, start=1) if row[0] in deleted]
    assert gone.tolist() == [row for n in dead for row in (2 * n, 2 * n + 1)]
    assert after.arrays().keys() == compacted(after).arrays().keys()


@given(st.lists(VERSIONS, max_size=12), st.sets(st.sampled_from(IDS), max_size=2), st.integers(0, 40))
def test_compaction_shows_the_same_and_names_no_deleted_note(steps, deleted, moment):
    columns, _, numbers = _played(steps, reload=False)
    deletions = [Deletion(1 + IDS.index(one), numbers[one]) for one in sorted(deleted) if one in numbers]
    columns, _ = columns.after((), (), deletions, {})
    small = compacted(columns)
    for when in (None, moment):
        assert everything(small, when).rows.tolist() == everything(columns, when).rows.tolist()
        for one in IDS:
            scope = Scope(patient_id=f"patient of {one}", section=(one,), as_of=None)
            assert select(small, scope).rows.tolist() == select(columns, scope).rows.tolist()
    assert not {text for texts in small.texts().values() for text in texts if text.startswith("patient")} & {
        f"patient of {one}" for one in deleted
    }


LANGUAGES = ("en", "es", None)
BATCHES = st.tuples(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.sampled_from(LANGUAGES), max_size=3)), max_size=4),
    st.sets(st.integers(1, 9), max_size=1),
    st.booleans(),
)


def _next(columns, batch, deleted, numbers):
    """Return the columns after notes (number and the languages of their chunks) were stored and some deleted."""
    last, first = columns.last_version_id, len(columns.chunks["row"]) + 1
    versions, chunks = [], []
    for note, languages in batch:
        numbers[note] = numbers.get(note, 0) + 1
        of = (f"n{note}", numbers[note], last + len(versions) + 1, f"p{note % 2}", None, None, None, UNDATED, UNDATED)
        versions.append(VersionRow(of[2], note, *of, Status.FINAL.value, (), len(languages)))
        chunks += [ChunkRow(first + len(chunks) + n, one, None, bytes([n] * 32)) for n, one in enumerate(languages)]
    gone = [Deletion(note, numbers[note]) for note in sorted(deleted) if note in numbers]
    return columns.after(versions, chunks, gone, {})[0]


def _looked_at(selection):
    """Return all that a reader works out of a selection; the vectors of rows are their numbers."""
    vectors = selection.sampled(3, lambda rows: rows.astype(np.float32)[:, None])
    return [
        *(value.tolist() for value in (selection.picks, selection.positions, selection.rows)),
        *([*one] for one in (selection.pools(), selection.samples(3))),
        *({name: rows.tolist() for name, rows in one.items()} for one in (selection.pools(), selection.samples(3))),
        {name: rows.ravel().tolist() for name, rows in vectors.items()},
        selection.coverage(),
        [selection.traits(selection.rows).patient.tolist(), selection.owners().tolist()],
    ]


@given(st.lists(BATCHES, min_size=2, max_size=6))
def test_a_moment_is_the_same_whether_or_not_it_was_looked_at_before(batches):
    columns, numbers = Columns.of({}, {}), {}
    for batch, deleted, looked in batches:
        columns = _next(columns, batch, deleted, numbers)
        if looked:
            anew = Columns.of(columns.arrays(), columns.texts())
            assert _looked_at(everything(columns, None)) == _looked_at(everything(anew, None))


def test_a_language_without_new_chunks_is_not_looked_at_again():
    numbers = {}
    columns = _next(Columns.of({}, {}), [(1, ["en", "es", "en"]), (2, ["es"])], (), numbers)
    before = everything(columns, None)
    _looked_at(before)
    later = everything(_next(_next(columns, [(3, ["en"])], (), numbers), [(4, ["en", None])], (), numbers), None)
    read = []
    vectors = later.sampled(3, lambda rows: read.extend(rows.tolist()) or rows.astype(np.float32)[:, None])
    assert later.pools()["es"] is before.pools()["es"]
    assert later.samples(3)["es"] is before.samples(3)["es"]
    assert vectors["es"].ravel().tolist() == [2, 4]
    assert set(read).isdisjoint(before.pools()["es"].tolist())
