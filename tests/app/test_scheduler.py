"""The scheduler's promises (docs/decisions/0003), with a fake clock and a fake runner: no torch, no thread."""

import itertools
import math
import weakref
from collections.abc import Sequence

import numpy as np
import pytest

from app.device.scheduler import Scheduler
from app.errors import DeviceLostError, FailedError, QueueFullError, UnavailableError
from app.ticket import ModelId, Part, Ticket
from tests.app.fakes import MODEL, OTHER, FakeClock, FakeRunner, FakeWatcher, answer_of, is_right, ticket


class World:
    """A scheduler and all that it is given."""

    def __init__(
        self,
        *,
        queue_rows: int = 100,
        batch_rows: int = 4,
        bulk_batch_rows: int | None = None,
        max_wait_s: float = math.inf,
        failures: int = 5,
    ) -> None:
        self.failing: list[tuple[ModelId, str]] = []
        self.clock, self.watcher = FakeClock(), FakeWatcher()
        self.runner = FakeRunner(self.clock)
        self.scheduler = Scheduler(
            self.runner,
            self.clock,
            self.watcher,
            queue_rows=queue_rows,
            batch_rows=batch_rows,
            bulk_batch_rows=bulk_batch_rows or batch_rows,
            max_wait_s=max_wait_s,
            failures=failures,
            failing=lambda *told: self.failing.append(told),
        )

    def submit(self, *tickets: Ticket) -> None:
        for _, of_a_model in itertools.groupby(tickets, key=lambda one: one.model):
            self.scheduler.submit(list(of_a_model))

    def turn(self) -> list[Ticket]:
        return self.scheduler.turn()

    def finish(self) -> list[Ticket]:
        """Turn until nothing is left to do; all that got through, in order."""
        through: list[Ticket] = []
        for _ in range(10_000):
            if self.scheduler.idle:
                return through
            through += self.turn()
        raise AssertionError("it never ends")

    def is_empty(self) -> bool:
        """Whether it has nothing left of anything."""
        rows = self.scheduler.rows, self.scheduler.bulk_rows
        return self.scheduler.idle and rows == (0, 0) and self.scheduler.backlog_s == 0


def test_lone_ticket_runs_at_once() -> None:
    """A lone ticket runs in the next turn, without waiting for company."""
    w = World()
    one = ticket(1)
    w.submit(one)
    assert not w.scheduler.idle
    assert w.turn() == [one]
    assert is_right(one)
    assert w.is_empty()


def test_nothing_to_do_is_no_pass() -> None:
    """A turn of an idle scheduler runs nothing and tells nobody of a pass."""
    w = World()
    assert w.scheduler.idle
    assert w.turn() == []
    assert (w.runner.passes, w.watcher.passes) == ([], [])


def test_who_arrives_between_passes_runs_together() -> None:
    """All that has arrived since the last pass is in the next, as far as it fits."""
    w = World()
    first, second, third = ticket(1), ticket(2), ticket(3)
    w.submit(first)
    w.turn()
    w.submit(second)
    w.submit(third)
    assert w.turn() == [second, third]


def test_one_step_overtakes_its_long_neighbour() -> None:
    """A one-step ticket joins a long one between two passes and leaves after one, and the long one goes on."""
    w = World()
    long, short = ticket(1, passes=500), ticket(2)
    w.submit(long)
    w.turn()
    w.submit(short)
    assert w.turn() == [short]
    assert set(w.runner.passes[1]) == {long, short}
    assert w.turn() == []
    assert w.runner.passes[2] == [long]
    assert w.finish() == [long]
    assert is_right(long)
    assert is_right(short)
    assert len(w.runner.passes) == 500


def test_long_tickets_cannot_keep_others_out() -> None:
    """With more long rows than fit into a pass, a newcomer waits for those who came before it to begin, and for no
    second pass of theirs.
    """
    w = World(batch_rows=4)
    w.submit(*(ticket(tag, passes=500) for tag in range(8)))
    w.turn()
    newcomer = ticket(99)
    w.submit(newcomer)
    assert [w.turn() for _ in range(2)] == [[], [newcomer]]


def test_newcomer_goes_before_all_who_have_begun() -> None:
    """However many long ones take turns, a short one is in the very next pass."""
    w = World(batch_rows=4)
    w.submit(*(ticket(tag, passes=500) for tag in range(40)))
    for _ in range(25):
        w.turn()
    newcomer = ticket(99)
    w.submit(newcomer)
    assert w.turn() == [newcomer]
    assert [len(batch) for batch in w.runner.passes[-2:]] == [4, 4]


def test_flood_of_newcomers_keeps_nobody_waiting_for_ever() -> None:
    """Whoever has begun has its turn once those who waited before it have had theirs, and as many as have begun."""
    w = World(batch_rows=4)
    long = [ticket(tag, passes=5) for tag in range(4)]
    w.submit(*long)
    w.turn()
    for _ in range(40):
        w.submit(*(ticket(99) for _ in range(w.scheduler.rows, 12)))
        w.turn()
    turns = [number for number, batch in enumerate(w.runner.passes) if long[0] in batch]
    assert len(turns) == 5
    assert max(later - earlier for earlier, later in itertools.pairwise(turns)) == 4


def test_pass_is_full_by_rows_in_order_of_arrival() -> None:
    """A ticket of several rows counts as so many, and no later one is taken before it because it would fit."""
    w = World(batch_rows=4)
    wide, second, third = ticket(1, rows=3), ticket(2, rows=2), ticket(3)
    w.submit(wide, second, third)
    w.finish()
    assert w.runner.passes == [[wide], [second, third]]
    assert [rows for _, rows, _ in w.watcher.passes] == [3, 3]


def test_pass_takes_as_many_rows_as_fit() -> None:
    """Rows that fit exactly run in one pass."""
    w = World(batch_rows=4)
    w.submit(*(ticket(tag) for tag in range(5)))
    w.finish()
    assert [len(batch) for batch in w.runner.passes] == [4, 1]


def test_ticket_wider_than_a_pass_runs_alone() -> None:
    """One that no pass has room for still runs, by itself."""
    w = World(batch_rows=2)
    wide = ticket(1, rows=3)
    w.submit(wide, ticket(9))
    assert w.turn() == [wide]


def test_models_take_turns() -> None:
    """A pass is of one model, and each model with work has every other pass."""
    w = World()
    mine = [ticket(tag, passes=3) for tag in range(2)]
    others = [ticket(10 + tag, passes=3, model=OTHER) for tag in range(2)]
    w.submit(*mine)
    w.submit(*others)
    w.finish()
    assert all(len({t.model for t in batch}) == 1 for batch in w.runner.passes)
    assert [batch[0].model for batch in w.runner.passes] == [MODEL, OTHER] * 3
    assert all(is_right(t) for t in [*mine, *others])


def test_crowded_model_does_not_starve_another() -> None:
    """A model with more rows than fit into a pass gives way to another after each of its passes all the same."""
    w = World(batch_rows=2)
    w.submit(*(ticket(tag, passes=50) for tag in range(6)))
    w.turn()
    other = ticket(99, model=OTHER)
    w.submit(other)
    assert other in [*w.turn(), *w.turn()]


def test_full_queue_refuses_at_once() -> None:
    """Rows beyond the bound are refused in the call itself, with a time to come back; answers make room again."""
    w = World(queue_rows=2)
    w.submit(ticket(1), ticket(2))
    with pytest.raises(QueueFullError, match="2 rows are waiting, of at most 2") as refusal:
        w.submit(ticket(3))
    assert refusal.value.headers["Retry-After"] == "1"
    w.turn()
    w.submit(ticket(4, rows=2))
    assert w.scheduler.rows == 2


def test_submission_is_all_or_nothing() -> None:
    """Of tickets that do not all fit none is queued."""
    w = World(queue_rows=2)
    with pytest.raises(QueueFullError):
        w.submit(ticket(1), ticket(2), ticket(3))
    assert w.is_empty()
    assert w.turn() == []


def test_time_to_come_back_counts_all_that_is_left_to_do() -> None:
    """With long forecasts waiting, the Retry-After of a refusal is that of their passes, not of their number."""
    w = World(queue_rows=1)
    w.runner.takes_s = 1
    w.submit(ticket(1, passes=1000))
    w.turn()
    with pytest.raises(QueueFullError) as refusal:
        w.submit(ticket(2))
    assert w.scheduler.backlog_s == pytest.approx(999)
    assert refusal.value.headers["Retry-After"] == "999"


def test_backlog_goes_with_who_leaves() -> None:
    """What is dropped in the middle takes its remaining passes out of the backlog, and no more than those."""
    w = World()
    w.runner.takes_s = 1
    gone, stays = ticket(1, passes=100, rows=3), ticket(9, passes=11)
    w.submit(gone, stays)
    w.turn()
    w.scheduler.drop(gone)
    assert w.scheduler.rows == 1
    # Four rows took a second together; one of them is left, with ten passes to go.
    assert w.scheduler.backlog_s == pytest.approx(10 / 4)
    w.finish()
    assert w.is_empty()


def test_dropped_in_the_queue_costs_no_pass() -> None:
    """One that is dropped before it ran never runs, and its rows are free at once."""
    w = World(queue_rows=2)
    stays, gone = ticket(1), ticket(2)
    w.submit(stays, gone)
    w.scheduler.drop(gone)
    assert w.scheduler.rows == 1
    w.submit(ticket(3))
    w.finish()
    assert all(gone not in batch for batch in w.runner.passes)
    assert w.is_empty()


def test_dropped_in_the_middle_costs_no_further_pass() -> None:
    """One that is dropped between two of its passes is not computed for again; its neighbour goes on."""
    w = World()
    gone, stays = ticket(1, passes=100), ticket(2, passes=3)
    w.submit(gone, stays)
    w.turn()
    w.scheduler.drop(gone)
    assert w.finish() == [stays]
    assert w.runner.passes[1:] == [[stays], [stays]]


def test_last_one_dropped_leaves_it_idle() -> None:
    """With the only ticket of a model dropped there is nothing to do, and a turn does nothing."""
    w = World()
    gone = ticket(1, passes=5)
    w.submit(gone)
    w.turn()
    w.scheduler.drop(gone)
    assert w.is_empty()
    assert w.turn() == []
    assert len(w.runner.passes) == 1


def test_dropping_twice_or_too_late_is_nothing() -> None:
    """Who has left, by whatever way, can be dropped again without a trace in the counters."""
    w = World()
    done, gone = ticket(1), ticket(2)
    w.submit(done, gone)
    w.scheduler.drop(gone)
    w.scheduler.drop(gone)
    w.finish()
    w.scheduler.drop(done)
    assert w.is_empty()


def test_who_has_left_is_not_kept() -> None:
    """However long the queue, the windows of those that were dropped or answered are freed at once."""
    w = World()
    w.submit(ticket(0, passes=500))
    for tag in range(1, 20):
        gone, done = ticket(tag, passes=9), ticket(tag)
        w.submit(gone, done)
        w.scheduler.drop(gone)
        assert w.turn() == [done]
        left = [weakref.ref(gone.window), weakref.ref(done.window)]
        del gone, done
        w.runner.passes.clear()
        assert [window() for window in left] == [None, None]


def test_one_bad_row_fails_alone() -> None:
    """A failing pass is halved until the row that does it stands alone; the others get their answers."""
    w = World(batch_rows=8)
    tickets = [ticket(tag) for tag in range(5)]
    w.runner.bad = {tickets[2]}
    w.submit(*tickets)
    assert set(w.finish()) == set(tickets)
    assert isinstance(tickets[2].error, FailedError)
    assert all(is_right(good) for good in (*tickets[:2], *tickets[3:]))
    assert w.is_empty()
    # In halves, not one by one: all five, the first two, the bad one with the last two, it alone, these two.
    assert [len(batch) for batch in w.runner.passes] == [5, 2, 3, 1, 2]


def test_several_bad_rows_fail_and_no_other() -> None:
    """Wherever the bad ones stand among the rows, exactly they fail."""
    for bad in ((0,), (7,), (0, 7), (3, 4), (1, 2, 6), tuple(range(8))):
        w = World(batch_rows=8)
        tickets = [ticket(tag, passes=2) for tag in range(8)]
        w.runner.bad = {tickets[index] for index in bad}
        w.submit(*tickets)
        assert set(w.finish()) == set(tickets)
        assert [one.error is not None for one in tickets] == [index in bad for index in range(8)]
        assert all(is_right(one) for one in tickets if one.error is None)
        assert w.is_empty()


def test_row_that_fails_in_the_middle_spares_its_neighbours_steps() -> None:
    """Rows at different steps go on from where they were after a failed pass was run again in halves."""
    w = World()
    good, bad = ticket(1, passes=4), ticket(2, passes=4)
    w.submit(good)
    w.turn()
    w.submit(bad)
    w.turn()
    w.runner.bad = {bad}
    w.finish()
    assert isinstance(bad.error, FailedError)
    assert is_right(good)


def test_halves_run_before_anything_else() -> None:
    """Who shared a pass with a bad row is not made to wait behind newcomers or another model."""
    w = World()
    good, bad = ticket(1), ticket(2)
    w.runner.bad = {bad}
    w.submit(good, bad)
    w.submit(ticket(3, model=OTHER))
    w.turn()
    w.submit(ticket(4))
    assert [w.turn(), w.turn()] == [[good], [bad]]


def test_halves_forget_who_was_dropped_meanwhile() -> None:
    """One that is dropped between a failed pass and its halves is not run again."""
    w = World()
    good, gone = ticket(1), ticket(2)
    w.runner.bad = {gone}
    w.submit(good, gone)
    w.turn()
    w.scheduler.drop(gone)
    assert w.finish() == [good]
    assert w.runner.passes == [[good, gone], [good]]
    assert gone.error is None
    assert w.is_empty()


def test_all_halves_dropped_is_no_pass() -> None:
    """When nobody of a failed pass waits any more, the next turn takes whoever else there is."""
    w = World()
    gone, other = [ticket(1), ticket(2)], ticket(3, model=OTHER)
    w.runner.bad = {gone[0]}
    w.submit(*gone, other)
    w.turn()
    for one in gone:
        w.scheduler.drop(one)
    assert w.turn() == [other]
    assert w.is_empty()


def test_failing_pass_does_not_stop_the_others() -> None:
    """After a pass that failed whole, the next ticket is served."""
    w = World()
    bad, good = ticket(1), ticket(2)
    w.runner.bad = {bad}
    w.submit(bad)
    assert w.turn() == [bad]
    assert w.is_empty()
    w.submit(good)
    assert w.turn() == [good]
    assert is_right(good)


def test_message_hides_the_cause(caplog: pytest.LogCaptureFixture) -> None:
    """What a model raised stays in the log, with its traceback."""
    w = World()
    bad = ticket(1)
    w.runner.bad = {bad}
    w.submit(bad)
    w.turn()
    assert bad.error is not None
    assert "secret" not in bad.error.detail
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is w.runner.error


def test_lost_device_comes_through() -> None:
    """A device that has failed is no bad row: nothing is halved, whoever turns is told."""
    w = World()
    tickets = [ticket(1), ticket(2)]
    w.runner.bad, w.runner.error = set(tickets), DeviceLostError("an illegal memory access")
    w.submit(*tickets)
    with pytest.raises(DeviceLostError):
        w.turn()
    assert len(w.runner.passes) == 1
    assert [one.error for one in tickets] == [None, None]


def test_runner_that_breaks_the_contract_is_a_bug() -> None:
    """Fewer parts than tickets is not taken for an answer of anyone."""
    clock, watcher = FakeClock(), FakeWatcher()

    def short(tickets: object) -> list[Part]:
        return []

    scheduler = Scheduler(short, clock, watcher, queue_rows=10, batch_rows=4, bulk_batch_rows=4)
    one = ticket(1)
    scheduler.submit([one])
    with pytest.raises(ValueError, match="argument"):
        scheduler.turn()
    assert not one.finished


def test_times_are_kept_apart() -> None:
    """Time in the queue ends with the first pass; time on the device is the sum of the passes that it was in."""
    w = World(batch_rows=1)
    busy, waits = ticket(1), ticket(2, passes=2)
    w.submit(busy, waits)
    for seconds in (3, 2, 1):
        w.runner.takes_s = seconds
        w.turn()
    assert (busy.queued_s, busy.device_s) == (0, 3)
    assert (waits.queued_s, waits.device_s) == (3, 3)
    assert w.watcher.waits == [0, 3]
    assert [seconds for _, _, seconds in w.watcher.passes] == [3, 2, 1]


def test_passes_in_a_row_count_as_passes() -> None:
    """A runner may take its tickets through several passes; the counters, and who is told, see each of them."""
    watcher = FakeWatcher()

    def run(tickets: Sequence[Ticket]) -> list[Part]:
        return [
            Part(np.concatenate([answer_of(one, one.done + ahead) for ahead in (0, 1)], 1), None, 2) for one in tickets
        ]

    scheduler = Scheduler(run, FakeClock(), watcher, queue_rows=10, batch_rows=4, bulk_batch_rows=4)
    long, short = ticket(1, passes=4), ticket(2, passes=2)
    scheduler.submit([long, short])
    assert scheduler.turn() == [short]
    assert (long.done, scheduler.rows, len(watcher.passes)) == (2, 1, 2)
    assert scheduler.turn() == [long]
    assert is_right(long)
    assert is_right(short)
    assert (scheduler.rows, scheduler.idle, scheduler.backlog_s) == (0, True, 0.0)


def test_bulk_work_waits_for_all_others() -> None:
    """However long it has waited, bulk work runs after whoever is in a hurry, of whatever model."""
    w = World(batch_rows=2)
    bulk = [ticket(1, bulk=True), ticket(2, model=OTHER, bulk=True)]
    w.submit(bulk[0])
    w.submit(bulk[1])
    mine, other = [ticket(tag) for tag in (10, 11, 12, 13)], ticket(20, model=OTHER)
    w.submit(*mine)
    w.submit(other)
    assert w.finish() == [*mine[:2], other, *mine[2:], *bulk]


def test_one_in_a_hurry_is_in_the_very_next_pass() -> None:
    """Between two passes of a long bulk ticket, however many more there are, whoever comes goes first."""
    w = World(batch_rows=4, bulk_batch_rows=2)
    w.submit(*(ticket(tag, rows=2, passes=100, bulk=True) for tag in range(0, 20, 2)))
    for tag in (50, 60, 70):
        w.turn()
        hasty = ticket(tag, model=OTHER)
        w.submit(hasty)
        assert w.turn() == [hasty]


def test_bulk_work_fills_the_room_that_nobody_wants() -> None:
    """A pass of few rows takes bulk rows of the same model along, up to the bound of passes with such rows."""
    w = World(batch_rows=8, bulk_batch_rows=4)
    bulk = [ticket(tag, bulk=True) for tag in range(5)]
    w.submit(*bulk, ticket(9, model=OTHER, bulk=True))
    hasty = ticket(20)
    w.submit(hasty)
    assert w.turn() == [hasty, *bulk[:3]]
    assert all(is_right(one) for one in (hasty, *bulk[:3]))


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([ticket(20, rows=5)], id="no room beside it"),
        pytest.param([ticket(20, rows=4), ticket(30, rows=8)], id="more of the same model"),
        pytest.param([ticket(20), ticket(30, model=OTHER)], id="another model"),
    ],
)
def test_bulk_work_makes_nobody_wait_longer(others: list[Ticket]) -> None:
    """No bulk row joins a pass beyond its bound, nor one that anybody in a hurry waits for the end of."""
    w = World(batch_rows=8, bulk_batch_rows=4)
    w.submit(ticket(1, bulk=True))
    for one in others:
        w.submit(one)
    w.turn()
    assert w.runner.passes == [others[:1]]


def test_models_of_bulk_work_take_turns() -> None:
    """Of several models' bulk work none keeps another out, whether or not there was room beside others of its model."""
    w = World(batch_rows=4, bulk_batch_rows=2)
    mine = [ticket(tag, passes=3, rows=2, bulk=True) for tag in (0, 10)]
    other = ticket(20, passes=50, rows=2, model=OTHER, bulk=True)
    w.submit(*mine, other)
    models = []
    for tag in range(30, 33):
        w.turn()
        models.append(w.runner.passes[-1][0].model)
        w.submit(ticket(tag))  # takes none along: two rows more do not fit
        w.turn()
    assert models == [MODEL, OTHER, MODEL]


def test_full_queue_of_bulk_work_keeps_nobody_else_out() -> None:
    """Each of the two has a bound of its own, and a refusal says how much of its kind waits."""
    w = World(queue_rows=2)
    w.submit(ticket(1, rows=2, bulk=True))
    w.submit(ticket(10, rows=2))
    assert (w.scheduler.rows, w.scheduler.bulk_rows) == (2, 2)
    for bulk in (False, True):
        with pytest.raises(QueueFullError, match="2 rows are waiting, of at most 2"):
            w.submit(ticket(20, bulk=bulk))
    w.finish()
    assert w.is_empty()


def test_time_to_come_back_is_that_of_those_who_go_first() -> None:
    """Bulk work adds nothing to the backlog of those in a hurry; to its own it adds, as everybody else's does."""
    w = World(queue_rows=2, batch_rows=4, bulk_batch_rows=2)
    w.runner.takes_s = 1
    w.submit(ticket(1))
    w.turn()
    w.submit(ticket(2, rows=2, passes=40, bulk=True))
    assert w.scheduler.backlog_s == 0
    w.submit(ticket(10, rows=2, passes=8))
    assert w.scheduler.backlog_s == pytest.approx(16)
    with pytest.raises(QueueFullError) as refusal:
        w.submit(ticket(20, bulk=True))
    assert refusal.value.headers["Retry-After"] == str(16 + 80)


def test_bad_bulk_row_holds_up_nobody() -> None:
    """Of a pass that failed the bulk rows are apart first, and their halves give way as bulk work does."""
    w = World(batch_rows=8)
    bulk = [ticket(tag, bulk=True) for tag in range(4)]
    w.runner.bad = {bulk[0]}
    w.submit(*bulk)
    early, late = [ticket(10), ticket(11)], ticket(20, model=OTHER)
    w.submit(*early)
    assert w.turn() == []
    w.submit(late)
    assert [w.turn(), w.turn()] == [early, [late]]
    assert set(w.finish()) == set(bulk)
    assert [one.error is not None for one in bulk] == [True, False, False, False]
    assert w.is_empty()


def test_dropped_bulk_work_costs_no_further_pass() -> None:
    """In the queue and in the middle alike, and its room is free again at once."""
    w = World(queue_rows=4, bulk_batch_rows=2)
    begun, waits = ticket(1, rows=2, passes=9, bulk=True), ticket(5, rows=2, bulk=True)
    w.submit(begun, waits)
    w.turn()
    w.scheduler.drop(begun)
    w.scheduler.drop(waits)
    assert w.is_empty()
    assert w.turn() == []
    assert w.runner.passes == [[begun]]


@pytest.mark.parametrize(
    ("bulk", "waiting", "undisturbed"),
    [(False, None, True), (False, False, False), (False, True, False), (True, False, False), (True, True, True)],
)
def test_who_may_go_straight_on(bulk: bool, waiting: bool | None, undisturbed: bool) -> None:
    """Those in a pass are disturbed by whoever comes first or along with them: not bulk work by more bulk work."""
    told = []

    def run(tickets: Sequence[Ticket]) -> list[Part]:
        if waiting is not None:
            scheduler.submit([ticket(9, bulk=waiting)])
        told.append(scheduler.undisturbed)
        return [Part(answer_of(one, 0), None) for one in tickets]

    scheduler = Scheduler(run, FakeClock(), FakeWatcher(), queue_rows=10, batch_rows=4, bulk_batch_rows=4)
    scheduler.submit([ticket(1, passes=2, bulk=bulk)])
    scheduler.turn()
    assert told == [undisturbed]


@pytest.mark.parametrize(
    ("others", "arriving", "expected"),
    [
        (["begun"], [], True),
        (["begun"], ["bulk"], True),
        (["begun"], ["begun"], False),
        (["begun"], ["other"], False),
        (["begun", "other"], [], False),
        (["other"], [], False),
        (["bulk"], [], False),
    ],
)
def test_who_keeps_their_places(others: list[str], arriving: list[str], expected: bool) -> None:
    """Those in a pass stay for another while only such wait as have begun, of the same model and priority."""
    told: list[bool] = []

    def some(kind: str) -> Ticket:
        return ticket(2, passes=9, model=OTHER if kind == "other" else MODEL, bulk=kind == "bulk")

    def run(tickets: Sequence[Ticket]) -> list[Part]:
        if tickets[0] is first and first.done:
            for kind in arriving:
                scheduler.submit([some(kind)])
            told.append(scheduler.stays())
        return [Part(answer_of(one, len(one.parts)), None) for one in tickets]

    scheduler = Scheduler(run, FakeClock(), FakeWatcher(), queue_rows=10, batch_rows=1, bulk_batch_rows=1)
    first = ticket(1, passes=2)
    for one in (first, *map(some, others)):
        scheduler.submit([one])
    while not told:
        scheduler.turn()
    assert told == [expected]


@pytest.mark.parametrize(("meanwhile_s", "further"), [(0.0, 4), (1.0, 4), (2.0, 2)])
def test_places_are_kept_for_a_while_only(meanwhile_s: float, further: int) -> None:
    """No further pass that would end after it, by the clock, or by what passes took where that shows only later."""
    clock = FakeClock()
    stayed: list[int] = []

    def run(tickets: Sequence[Ticket]) -> list[Part]:
        clock.now += 1.0
        if tickets[0].done:
            stayed.append(0)
            while stayed[-1] < 9 and scheduler.stays():
                stayed[-1] += 1
                clock.now += meanwhile_s
        return [Part(answer_of(one, len(one.parts)), None) for one in tickets]

    scheduler = Scheduler(run, clock, FakeWatcher(), queue_rows=10, batch_rows=1, bulk_batch_rows=1, turn_s=5.0)
    for tag in range(2):
        scheduler.submit([ticket(tag, passes=2)])
    for _ in range(3):
        scheduler.turn()
    assert stayed == [further]


# Sharing


def test_models_share_by_time() -> None:
    """A model whose passes take ten times as long has a tenth of the passes, and neither waits for more than that."""
    w = World(batch_rows=1)
    slow, quick = ticket(1, passes=50), ticket(2, passes=500, model=OTHER)
    w.submit(slow, quick)
    used = {MODEL: 0.0, OTHER: 0.0}
    for _ in range(220):
        w.runner.takes_s = next_s = 1.0 if w.scheduler._first.first() == MODEL else 0.1
        w.turn()
        used[w.runner.passes[-1][0].model] += next_s
        assert abs(used[MODEL] - used[OTHER]) <= 1.1 + 1e-9
    assert slow.done == pytest.approx(20, abs=1)


def test_newcomer_is_not_made_up_for() -> None:
    """A model that had nothing to do while another ran is no better off for it: from then on they share alike."""
    w = World(batch_rows=1)
    w.runner.takes_s = 1
    w.submit(ticket(1, passes=200))
    for _ in range(100):
        w.turn()
    w.submit(ticket(2, passes=200, model=OTHER))
    for _ in range(20):
        w.turn()
    assert sum(batch[0].model == OTHER for batch in w.runner.passes) == 10


def test_idle_device_is_nobodys_debt() -> None:
    """What a model had of a device that was idle afterwards does not count against it."""
    w = World(batch_rows=1)
    w.runner.takes_s = 100
    w.submit(ticket(1))
    w.turn()
    w.runner.takes_s = 1
    w.submit(ticket(2, passes=9, model=OTHER), ticket(3, passes=9))
    for _ in range(6):
        w.turn()
    assert [batch[0].model for batch in w.runner.passes[1:]] == [OTHER, MODEL] * 3


def test_flood_keeps_no_other_model_out() -> None:
    """With a queue that one model has filled, another gets in up to an eighth of it; the first does not."""
    w = World(queue_rows=16)
    w.submit(*(ticket(tag) for tag in range(16)))
    for tag in (100, 101):
        w.submit(ticket(tag, model=OTHER))
    for model in (MODEL, OTHER):
        with pytest.raises(QueueFullError, match="18 rows are waiting, of at most 16"):
            w.submit(ticket(200, model=model))
    assert w.scheduler.rows == 18
    w.finish()
    assert w.is_empty()


def test_flood_makes_no_other_model_wait_for_it() -> None:
    """However much of one model waits, a newcomer of another waits for a pass of it, and is not refused."""
    w = World(queue_rows=1000, batch_rows=1, max_wait_s=5)
    w.runner.takes_s = 1
    w.submit(*(ticket(tag, passes=9) for tag in range(100)))
    w.turn()
    assert w.scheduler.busy(MODEL).wait_s == pytest.approx(100)
    assert w.scheduler.busy(OTHER).wait_s == pytest.approx(1)
    with pytest.raises(QueueFullError):
        w.submit(ticket(200))
    one = ticket(300, model=OTHER)
    w.submit(one)
    assert one in [*w.turn(), *w.turn()]


# Admission


def crowd(**limits: float) -> World:
    """A world in which a row's pass takes a second, with ten rows of two passes waiting."""
    w = World(queue_rows=1000, batch_rows=1, **limits)
    w.runner.takes_s = 1
    w.submit(ticket(0))
    w.turn()
    w.submit(*(ticket(tag, passes=2) for tag in range(1, 11)))
    return w


def test_who_would_wait_too_long_is_refused() -> None:
    """The wait for the first pass is that of the rows before; beyond the bound the refusal says for how long."""
    crowd(max_wait_s=10).submit(ticket(50))
    with pytest.raises(QueueFullError, match=r"the wait is about 10.0 s, of at most 9.9 s") as refusal:
        crowd(max_wait_s=9.9).submit(ticket(50))
    assert refusal.value.headers["Retry-After"] == "10"


@pytest.mark.parametrize(
    ("passes", "needs_s"),
    [
        pytest.param(1, 11, id="the others have one pass each before it"),
        pytest.param(2, 22, id="then another"),
        pytest.param(30, 50, id="then they are through"),
    ],
)
def test_who_cannot_be_done_in_time_is_refused(passes: int, needs_s: float) -> None:
    """An order whose passes, and those between them, take longer than anybody waits for it is not begun."""
    crowd().scheduler.submit([ticket(50, passes=passes)], needs_s + 0.01)
    with pytest.raises(QueueFullError, match=f"would take about {needs_s}.0 s, of at most"):
        crowd().scheduler.submit([ticket(50, passes=passes)], needs_s - 0.01)


def test_nothing_waits_so_nobody_is_refused() -> None:
    """An estimate alone refuses nobody: where nothing waits, it is tried."""
    w = World(batch_rows=1, max_wait_s=1)
    w.runner.takes_s = 1000
    w.submit(ticket(1))
    w.turn()
    w.scheduler.submit([ticket(2)], 0.1)
    w.finish()
    assert w.is_empty()


def test_slow_passes_are_forgotten() -> None:
    """One pass that took long keeps nobody out for ever: what counts is how passes went lately."""
    w = World(queue_rows=1000, batch_rows=1, max_wait_s=5)
    w.runner.takes_s = 100
    w.submit(ticket(0, passes=100))
    w.turn()
    with pytest.raises(QueueFullError):
        w.submit(ticket(1))
    w.runner.takes_s = 0.01
    for _ in range(50):
        w.turn()
    w.submit(ticket(2))


def test_full_passes_are_cheap_for_each_row() -> None:
    """The rate is of rows: a device that takes four at a time is through with them in a quarter of the time."""
    w = World(batch_rows=4)
    w.runner.takes_s = 1
    w.submit(*(ticket(tag, passes=2) for tag in range(4)))
    w.turn()
    assert w.scheduler.busy(MODEL) == (4, pytest.approx(1), pytest.approx(1), pytest.approx(0.25), pytest.approx(1))


def test_bulk_work_is_not_refused_by_an_estimate() -> None:
    """It waits however long it takes: whoever sends it has no bound of that kind."""
    w = crowd(max_wait_s=1)
    w.scheduler.submit([ticket(50, passes=99, bulk=True)], 0.1)
    w.scheduler.submit([ticket(60, passes=99, bulk=True)], 0.1)


# Models that fail, and memory that does not suffice


def fail(w: World, *tickets: Ticket) -> None:
    """They fail, one after the other."""
    w.runner.bad |= set(tickets)
    for one in tickets:
        w.submit(one)
        w.finish()
        assert isinstance(one.error, FailedError)


def test_model_that_fails_again_and_again_is_told_once() -> None:
    """After so many in a row and not before; again only once it was loaded again."""
    w = World(failures=3)
    fail(w, ticket(1), ticket(2))
    assert w.failing == []
    fail(w, ticket(3))
    assert w.failing == [(MODEL, "it failed 3 times in a row while it served (ValueError)")]
    fail(w, *(ticket(tag) for tag in range(4, 12)))
    assert len(w.failing) == 1
    w.scheduler.renew(MODEL)
    fail(w, ticket(20), ticket(21))
    assert len(w.failing) == 1
    fail(w, ticket(22))
    assert len(w.failing) == 2


def test_success_in_between_begins_anew() -> None:
    """A model that answers some is not failing, however many others it fails on; other models count for themselves."""
    w = World(failures=2)
    for tag in range(0, 30, 3):
        fail(w, ticket(tag))
        w.submit(ticket(tag + 2))
        w.finish()
    fail(w, ticket(100, model=OTHER))
    assert w.failing == []


def test_rows_that_fail_together_count_each() -> None:
    """What counts are the rows that failed alone, after a failing pass was halved, and not the halves."""
    w = World(batch_rows=8, failures=8)
    bad = [ticket(tag) for tag in range(8)]
    w.runner.bad = set(bad)
    w.submit(*bad[:7])
    w.finish()
    assert w.failing == []
    w.submit(bad[7])
    w.finish()
    assert len(w.failing) == 1


def test_pass_that_does_not_fit_runs_in_halves() -> None:
    """Everybody is answered, further passes have half as many rows, and nobody is blamed."""
    w = World(batch_rows=8, failures=1)
    w.runner.most = 4
    tickets = [ticket(tag, passes=2) for tag in range(8)]
    w.submit(*tickets)
    assert set(w.finish()) == set(tickets)
    assert all(is_right(one) for one in tickets)
    assert [len(batch) for batch in w.runner.passes] == [8, 4, 4, 4, 4]
    assert (w.watcher.starved, w.failing) == ([MODEL], [])
    assert w.is_empty()


def test_ticket_that_does_not_fit_is_split() -> None:
    """The rows of one ticket run apart as well, also in the middle of their passes, and join what they had."""
    w = World(batch_rows=8)
    halves: list[Ticket] = []

    def split(one: Ticket) -> Sequence[Ticket]:
        halves[:] = [half for half in halves if half is not one] + [*(two := one.halves())]
        return two

    w.scheduler._split = split
    wide = ticket(0, rows=5, passes=3)
    w.submit(wide)
    w.turn()
    w.runner.most = 2
    through = w.finish()
    assert wide.gone
    assert set(through) == set(halves)
    assert sorted(one.rows for one in halves) == [1, 2, 2]
    assert all(is_right(one) for one in halves)
    assert w.is_empty()


def test_row_that_does_not_fit_fails_alone() -> None:
    """One row that is too much is refused as for now, which is no fault of the model's; work goes on."""
    w = World(failures=1)
    w.runner.most = 0
    one = ticket(1)
    w.submit(one)
    assert w.finish() == [one]
    assert type(one.error) is UnavailableError
    assert w.failing == []
    w.runner.most = 4
    w.submit(good := ticket(2))
    assert w.finish() == [good]
    assert is_right(good)


def test_room_grows_back() -> None:
    """After enough full passes there is one row more, up to a whole pass; until a load nothing else widens it."""
    w = World(batch_rows=4)
    w.runner.most = 2
    w.submit(*(ticket(tag) for tag in range(4)))
    w.finish()
    assert (w.scheduler.room(MODEL), w.scheduler.room(OTHER)) == (2, 4)
    w.runner.most = 4
    w.submit(*(ticket(tag, passes=1000) for tag in range(4)))
    for _ in range(60):
        w.turn()
    assert w.scheduler.room(MODEL) == 3
    for _ in range(60):
        w.turn()
    assert w.scheduler.room(MODEL) == 4
    w.scheduler.renew(MODEL)
    assert w.scheduler.room(MODEL) == 4


def test_bulk_rows_keep_to_the_room_as_well() -> None:
    """Alone, and beside others of the model."""
    w = World(batch_rows=8)
    w.runner.most = 2
    w.submit(*(ticket(tag) for tag in range(5)))
    w.finish()
    begun = len(w.runner.passes)
    w.submit(*(ticket(tag, bulk=True) for tag in range(10, 15)))
    w.submit(ticket(20))
    w.finish()
    assert all(len(batch) <= 2 for batch in w.runner.passes[begun:])
    assert w.watcher.starved == [MODEL] * 2


def test_model_that_is_forgotten_leaves_nothing() -> None:
    """Once a model is unloaded the scheduler knows nothing of it, whatever had happened to it."""
    w = World(batch_rows=8)
    w.submit(*(ticket(tag) for tag in range(3)), ticket(10, bulk=True))
    assert w.scheduler.holds(MODEL)
    w.finish()
    assert not w.scheduler.holds(MODEL)
    w.scheduler.forget(MODEL)
    assert not w.scheduler._records
    assert [queue.lanes for queue in w.scheduler._queues] == [{}, {}]
