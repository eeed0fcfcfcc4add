"""Windows: where they may start, that they are views, and that batches gather them all."""

from collections.abc import Iterable
from itertools import dropwhile, groupby

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from training.data.windows import Batch, Batches, Clock, Shard, Windows, overlong, usable, usable_short


def windows(rows: int = 20, length: int = 4, steps: int = 2, features: int = 3) -> Windows:
    starts = torch.arange(rows - length - steps + 1)
    values = torch.arange(rows * features, dtype=torch.float32).view(rows, features)
    clock = Clock(torch.tensor([0, 8]), torch.tensor([0, 100 * 3600]), 3600)
    return Windows(values, starts, clock, length, steps)


def test_gathered_windows_equal_those_cut_one_by_one() -> None:
    """A batch holds, in the order asked for, what slicing row by row would give."""
    found = windows()
    index = torch.tensor([7, 0, 14, 7])

    slow = [[found.rows[start + row].tolist() for row in range(6)] for start in index.tolist()]

    assert found.gather(index).rows.tolist() == slow


def test_windows_share_the_storage_of_their_rows() -> None:
    """However many windows overlap, the rows are in memory once."""
    found = windows(rows=100, length=50)

    assert found.view.data_ptr() == found.rows.data_ptr()
    assert found.view.untyped_storage().nbytes() == found.rows.numel() * 4


@st.composite
def _cases(draw: st.DrawFn) -> tuple[list[list[bool]], list[bool], int, int, int, int]:
    """Missing values by row and column, rows that must not be forecast, L, fewest rows, N and the limit."""
    length = draw(st.integers(1, 6))
    shortest = draw(st.integers(1, length))
    limit = draw(st.integers(0, shortest - 1))
    cell = st.booleans() if draw(st.booleans()) else st.integers(0, 5).map(lambda of: of == 0)
    row = st.one_of(st.lists(cell, min_size=2, max_size=2), st.just([True, True]))
    rows = draw(st.lists(row, max_size=30))
    unscored = draw(st.lists(st.integers(0, 9).map(lambda of: of == 0), min_size=len(rows), max_size=len(rows)))
    return rows, unscored, length, shortest, draw(st.integers(1, 4)), limit


def _runs_in(column: list[bool]) -> list[int]:
    return [len(list(run)) for missing, run in groupby(column) if missing]


@given(case=_cases())
@example(case=([[True, True], [True, False], *[[False, False]] * 3], [False] * 5, 4, 2, 1, 0))
def test_windows_are_those_a_slow_search_finds(
    case: tuple[list[list[bool]], list[bool], int, int, int, int],
) -> None:
    """No run of missing values within the rows given is longer than the limit, and nothing unscored is forecast.

    Where windows may be shorter, their first rows may be all empty instead, as long as enough are left.
    """
    rows, unscored, length, shortest, steps, limit = case
    missing = torch.tensor(rows, dtype=torch.bool).view(-1, 2)
    blocked = overlong(missing[:, 0], limit) | overlong(missing[:, 1], limit)

    def fits(given: list[list[bool]], fewest: int) -> bool:
        return len(given) >= fewest and all(
            run <= limit for column in (0, 1) for run in _runs_in([r[column] for r in given])
        )

    def expected(fewest: int) -> list[bool]:
        found = []
        for start in range(len(rows) - length - steps + 1):
            given = rows[start : start + length]
            if fewest < length:
                given = list(dropwhile(all, given))
            found.append(fits(given, fewest) and not any(unscored[start + length : start + length + steps]))
        return found

    full = usable(blocked, torch.tensor(unscored, dtype=torch.bool), length=length, steps=steps, limit=limit)
    assert full.tolist() == expected(length)
    if shortest < length:
        short = usable_short(
            blocked,
            torch.tensor(unscored, dtype=torch.bool),
            missing.all(1),
            length=length,
            shortest=shortest,
            steps=steps,
            limit=limit,
        )
        assert short.tolist() == expected(shortest)


def test_a_run_is_overlong_from_the_row_on_in_which_it_becomes_so() -> None:
    """Also where it began with the series."""
    missing = torch.tensor([True, True, True, False, True, True, False, True])

    assert overlong(missing, 0).tolist() == missing.tolist()
    assert overlong(missing, 2).nonzero().flatten().tolist() == [2]
    assert overlong(missing, 1).nonzero().flatten().tolist() == [1, 2, 5]
    assert not overlong(missing, 8).any()


def test_every_window_comes_once_an_epoch() -> None:
    """In order without a seed, in a fresh order each time with one; the short last batch is not dropped."""
    found = windows()
    plain, shuffled = Batches(found, 4), Batches(found, 4, seed=1)

    first, second, in_order = (_cells(batches) for batches in (shuffled, shuffled, plain))

    assert len(plain) == len(list(plain)) == 4
    assert in_order == (found.starts * 3).tolist()
    assert sorted(first) == sorted(second) == in_order
    assert first != second != in_order


@pytest.mark.parametrize(("size", "sizes"), [(4, [4, 4, 4, 3]), (7, [7, 8]), (14, [15]), (15, [15]), (99, [15])])
def test_no_batch_has_a_single_window(size: int, sizes: list[int]) -> None:
    """A window that would be alone at the end joins the batch before it: batch normalisation needs two."""
    batches = Batches(windows(), size)

    assert [len(rows) for rows, _ in batches] == sizes
    assert len(batches) == len(sizes)


def test_a_seed_decides_the_order() -> None:
    """Two loops with one seed see the same batches."""
    one, other = (Batches(windows(), 4, seed=5) for _ in range(2))

    assert [_cells(one) for _ in range(3)] == [_cells(other) for _ in range(3)]


def test_every_window_knows_its_time() -> None:
    """That of the last row given, counted from where its series began."""
    found = windows()

    times = found.gather(torch.tensor([0, 4, 5, 14])).times

    assert (times // 3600).tolist() == [3, 7, 100, 109]


@pytest.mark.parametrize(("size", "of"), [(4, 2), (7, 3), (6, 3), (99, 4)])
def test_shards_share_every_batch(size: int, of: int) -> None:
    """Processes with one seed go through the same batches, each through a part of every one, and none is left out."""
    shards = [Batches(windows(), size, seed=2, shard=Shard(rank, of)) for rank in range(of)]

    whole = list(Batches(windows(), size, seed=2))
    parts = list(zip(*shards, strict=True))

    assert len({len(shard) for shard in shards}) == 1
    assert sorted(_cells(batch for step in parts for batch in step)) == sorted(_cells(whole))
    assert all(len(batch.rows) >= 2 for step in parts for batch in step)
    together = [sum(len(batch.rows) for batch in step) for step in parts]
    assert together[:-1] == [size] * (len(together) - 1)


def _cells(batches: Iterable[Batch]) -> list[float]:
    """The first of each window."""
    cells: list[Tensor] = [rows[:, 0, 0] for rows, _ in batches]
    return torch.cat(cells).tolist()
