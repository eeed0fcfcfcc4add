"""Windows: where they may start, that they are views, and that batches gather them all."""

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.data.windows import Batch, Batches, Clock, Shard, Windows, complete


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


@given(
    marks=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30),
    length=st.integers(1, 5),
    steps=st.integers(1, 4),
)
def test_complete_runs_are_those_a_slow_search_finds(marks: list[tuple[bool, bool]], length: int, steps: int) -> None:
    """A window has no blocked row anywhere and no unscored row among those to be forecast."""
    blocked, unscored = (torch.tensor([mark[kind] for mark in marks], dtype=torch.bool) for kind in (0, 1))

    found = complete(blocked, unscored, length, steps).tolist()

    assert found == [
        not blocked[start : start + length + steps].any()
        and not unscored[start + length : start + length + steps].any()
        for start in range(len(marks) - length - steps + 1)
    ]


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
