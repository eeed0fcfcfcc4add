"""What adaptive intervals learn, remember and share: in files of several processes, and in a real Redis that may go."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.errors import InvalidError
from app.forecasts import adaptive, cache_redis
from app.forecasts.adaptive import Adaptive, FolderStates, Learnt, Lesson, Outcomes, State, States
from app.forecasts.adaptive_redis import RedisStates
from app.ticket import ModelId
from models.intervals import ADAPTIVE_RATE, Base
from models.spec import Spec
from tests.app import calibrated
from tests.app.fakes import MODEL, OTHER
from tests.app.serving import ROOT, RedisServer, redis_server
from tests.app.specs import spec_of
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

SPEC = spec_of(intervals=calibrated.intervals())
LEAST = np.full((calibrated.STEPS, 1), 0.01)

LEARN = """
import asyncio, sys
from pathlib import Path
import numpy as np
from app.forecasts.adaptive import Adaptive, FolderStates, Outcomes
from app.ticket import ModelId
from models.spec import Intervals, Spec

spec = Spec.model_construct(targets=["a"], intervals=Intervals.model_construct(levels=[80, 90], calibrated_steps=3))
model = ModelId("tiny", 1, sys.argv[3])

async def main():
    adaptive = Adaptive(FolderStates(Path(sys.argv[1])), None)
    print("ready", flush=True)
    sys.stdin.read(1)
    for number in range(50):
        window = f"{sys.argv[2]} {number}".encode().ljust(16)
        outcomes = Outcomes([window], np.ones((1, 1, 1), bool), np.ones((1, 1, 1)), np.zeros((3, 1)))
        assert await adaptive.learn(model, spec, outcomes) is not None

asyncio.run(main())
"""


class FakeMetrics:
    """Counts what went wrong."""

    def __init__(self) -> None:
        self.failed = 0

    def adaptive_failed(self) -> None:
        self.failed += 1


def outcomes(*p_values: float, window: bytes = b"w", windows: int = 1) -> Outcomes:
    """Of one target at steps one after the other; not observed where the p-value is NaN."""
    p = np.tile(np.array(p_values)[None, :, None], (windows, 1, 1))
    names = [window + bytes([index]) + b" " * (15 - len(window)) for index in range(windows)]
    return Outcomes(names, ~np.isnan(p), p, LEAST)


async def learnt(learning: Adaptive, model: ModelId = MODEL, spec: Spec = SPEC) -> Learnt:
    """What there is to ask for at all of the model's levels and steps."""
    found = await learning.alphas(model, spec, ["80", "90"], calibrated.STEPS)
    assert found is not None
    return found


async def lesson(learning: Adaptive, told: Outcomes, model: ModelId = MODEL) -> Lesson:
    """What was new in it."""
    found = await learning.learn(model, SPEC, told)
    assert found is not None
    return found


@pytest.fixture(params=["files", "Redis"])
def states(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[States]:
    """Every kind."""
    if request.param == "files":
        yield FolderStates(tmp_path)
    else:
        with redis_server(tmp_path) as server:
            yield RedisStates(server.url, timeout_s=10)


# What is learnt


async def test_begins_as_calibrated(states: States) -> None:
    """Before anything is told, each level asks for its own miscoverage; levels come in the order that is asked for."""
    learning = Adaptive(states, FakeMetrics())
    found = await learning.alphas(MODEL, SPEC, ["90", "80.0"], 2)
    await states.close()

    assert found is not None
    assert found.actuals == 0
    assert found.alpha.tolist() == [[[0.1], [0.1]], [[0.2], [0.2]]]


async def test_moves_by_hand(states: States) -> None:
    """A cover raises what is asked for by the rate times the level's miscoverage, a miss lowers it by the rest."""
    learning, rate = Adaptive(states, FakeMetrics()), ADAPTIVE_RATE
    told = await lesson(learning, outcomes(0.5, 0.15, np.nan))
    found = await learnt(learning)
    await states.close()

    assert told.inside[:, 0, :, 0].tolist() == [[True, False, False], [True, True, False]]
    assert (told.actuals, found.actuals) == (2, 2)
    expected = [[0.2 + rate * 0.2, 0.2 - rate * 0.8, 0.2], [0.1 + rate * 0.1, 0.1 + rate * 0.1, 0.1]]
    assert found.alpha[:, :, 0].tolist() == pytest.approx(np.array(expected))


async def test_windows_move_one_after_the_other(tmp_path: Path) -> None:
    """Two windows told at once are as good as told one after the other."""
    one, other = Adaptive(FolderStates(tmp_path), FakeMetrics()), Adaptive(FolderStates(tmp_path), FakeMetrics())
    await lesson(one, outcomes(0.199, windows=2))
    for window in (b"x", b"y"):
        told = await lesson(other, outcomes(0.199, window=window), OTHER)

    assert (await learnt(one)).alpha.tolist() == (await learnt(other, OTHER)).alpha.tolist()
    # The miss of the first has made the interval of the second wider.
    assert told.inside[0].all()


async def test_counts_each_value_once(states: States) -> None:
    """The same again changes nothing; more rows, or a value where there was none, count alone."""
    learning = Adaptive(states, FakeMetrics())
    first = await lesson(learning, outcomes(0.5))
    before = await learnt(learning)
    again = await lesson(learning, outcomes(0.5))
    after = await learnt(learning)
    more = await lesson(learning, outcomes(0.5, np.nan, 0.5))
    filled = await lesson(learning, outcomes(0.5, 0.5, 0.5))
    fewer = await lesson(learning, outcomes(0.5))
    other = await lesson(learning, outcomes(0.5), OTHER)
    await states.close()

    fresh = [told.fresh[0, :, 0].tolist() for told in (first, again, more, filled, fewer)]
    assert fresh == [[True], [False], [False, False, True], [False, True, False], [False]]
    assert before.alpha.tolist() == after.alpha.tolist()
    assert (filled.actuals, fewer.actuals, other.actuals) == (3, 3, 1)


async def test_steps_beyond_the_calibrated_ones(tmp_path: Path) -> None:
    """They are counted but teach nothing, and ask for what the last calibrated one does."""
    learning = Adaptive(FolderStates(tmp_path), FakeMetrics())
    told = await lesson(learning, outcomes(0.5, 0.5, 0.05, 0.05, 0.05))
    found = await learning.alphas(MODEL, SPEC, ["90"], 5)

    assert told.fresh.all()
    assert not told.inside[:, :, calibrated.STEPS :].any()
    assert found is not None
    assert found.actuals == 3
    assert found.alpha[0, 2:, 0].tolist() == pytest.approx([0.1 - ADAPTIVE_RATE * 0.9] * 3)


@pytest.mark.parametrize("symmetric", [False, True])
async def test_holds_what_the_interval_holds(symmetric: bool) -> None:
    """What counts as covered is what the adaptive interval of the moment covers, at its limits as well."""
    table = calibrated.table(symmetric=symmetric)
    least = len(table.ranks.scores) / (table.ranks.counts + 1)
    random = np.random.default_rng(0)
    for number in range(300):
        state = State.fresh(SPEC)
        state.alpha = random.choice(
            [random.uniform(-0.06, 1, (2, 3, 1)), np.zeros((2, 3, 1)), np.full((2, 3, 1), 0.999)]
        )
        base = Base(np.zeros((1, 3, 1), np.float32))
        truth = (random.uniform(-120, 120, (1, 3, 1)) * random.choice([1, 0.01])).astype(np.float32)
        intervals = [table.adaptive_bounds(base, alpha)[0] for alpha in state.alpha]
        p_values = table.p_values(base, truth)
        told = state.learn(Outcomes([bytes([number % 256]) * 16], truth < 1e9, p_values, least), [80, 90])
        assert told.inside[:, 0].tolist() == [
            ((lower <= truth) & (truth <= upper))[0].tolist() for lower, upper in intervals
        ]


async def test_level_that_was_not_measured(tmp_path: Path) -> None:
    """Only the model's own levels learn; of a model without intervals none does, but values are counted once."""
    learning = Adaptive(FolderStates(tmp_path), FakeMetrics())
    with pytest.raises(InvalidError, match=r"query\.level: 95 is not adaptive; of this model these are: 80, 90"):
        await learning.alphas(MODEL, SPEC, ["80", "95"], 1)
    without = Outcomes([b"w" * 16], np.ones((1, 2, 1), np.bool_))
    first = await learning.learn(OTHER, spec_of(), without)
    again = await learning.learn(OTHER, spec_of(), without)

    assert first is not None
    assert again is not None
    assert first.fresh.all()
    assert not again.fresh.any()
    assert again.actuals == 0


# What is remembered


def test_memory_of_windows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was told of the longest ago is forgotten, and would count again."""
    monkeypatch.setattr(adaptive, "_SEEN_BYTES", 3 * (20 + 1))
    state = State.fresh(SPEC)
    for window in (b"a", b"b", b"c", b"a", b"d"):
        state.learn(outcomes(0.5, window=window), [80, 90])

    assert [window[:1] for window in state.seen] == [b"c", b"a", b"d"]


def test_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that nobody has told of for the longest is forgotten."""
    monkeypatch.setattr(adaptive, "_MOST_MODELS", 2)
    learning = Adaptive(FolderStates(tmp_path), FakeMetrics())

    async def learn() -> list[int]:
        models = [ModelId("tiny", version, f"sha256:{version}") for version in range(3)]
        for model in models:
            await lesson(learning, outcomes(0.5), model)
        return [(await learnt(learning, model)).actuals for model in models]

    assert asyncio.run(learn()) == [0, 1, 1]


def test_packs_and_unpacks() -> None:
    """A state is the same again, whatever is in it."""
    state = State.fresh(SPEC)
    state.learn(outcomes(0.5, np.nan, 0.01, 0.5, windows=3), [80, 90])
    again = State.unpack(state.pack(), SPEC)

    assert (again.alpha.tolist(), again.actuals, again.seen) == (state.alpha.tolist(), 6, state.seen)
    assert list(again.seen) == list(state.seen)


_SOUND = State.fresh(SPEC).pack()


@pytest.mark.parametrize(
    "rubbish",
    [
        b"x",
        b"\0" * 500,
        _SOUND[:-1],
        _SOUND + b"x",
        _SOUND[:24] + b"\x01" + _SOUND[25:],
        _SOUND[:28] + b"\xff" * 8 + _SOUND[36:],
        State.fresh(spec_of(intervals=calibrated.intervals(levels=(80,)))).pack(),
    ],
    ids=["a byte", "zeros", "short", "long", "a window too many", "NaN", "other levels"],
)
async def test_foreign_bytes_begin_anew(states: States, rubbish: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """What is none of ours is as good as nothing, and is replaced."""
    await states.change(MODEL.digest, lambda _: (rubbish, None))
    learning = Adaptive(states, FakeMetrics())
    told = await lesson(learning, outcomes(0.5))
    found = await learnt(learning)
    await states.close()

    assert told.fresh.all()
    assert (told.actuals, found.actuals) == (1, 1)
    assert "it begins anew" in caplog.text


async def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    """Nothing is learnt and nothing raised; it is counted. What is not there yet is no fault, and is made."""
    watcher = FakeMetrics()
    gone = Adaptive(FolderStates(tmp_path / "gone" / "kept"), watcher)
    assert (await learnt(gone)).actuals == 0
    assert await gone.learn(MODEL, SPEC, outcomes(0.5)) is None
    assert watcher.failed == 1

    (tmp_path / "gone").write_text("in the way")
    assert await gone.alphas(MODEL, SPEC, ["80"], 1) is None
    assert watcher.failed == 2

    new = Adaptive(FolderStates(tmp_path / "new"), watcher)
    await lesson(new, outcomes(0.5))
    assert (await learnt(new)).actuals == 1


# Together


def test_processes_add_up(tmp_path: Path) -> None:
    """Two processes that learn at once lose nothing of what either was told."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", LEARN, str(tmp_path), name, MODEL.digest],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in ("one", "other")
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write(b"go")
        process.stdin.flush()
    for process in running:
        process.communicate(timeout=PATIENCE_S)
    found = asyncio.run(learnt(Adaptive(FolderStates(tmp_path), FakeMetrics())))

    assert [process.returncode for process in running] == [0, 0]
    assert found.actuals == 100
    assert found.alpha[0, 0, 0] == pytest.approx(0.2 + 100 * ADAPTIVE_RATE * 0.2)


async def test_tasks_add_up(states: States) -> None:
    """So do the requests of one process."""
    learning = Adaptive(states, FakeMetrics())
    await asyncio.gather(*(lesson(learning, outcomes(0.5, window=bytes([number]))) for number in range(20)))
    found = await learnt(learning)
    await states.close()

    assert found.actuals == 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that runs."""
    with redis_server(tmp_path) as server:
        yield server


async def test_replicas_add_up_in_redis(server: RedisServer) -> None:
    """Two replicas that learn at once lose nothing; what nobody tells of for a month is forgotten."""
    stores = [RedisStates(server.url, timeout_s=10) for _ in range(2)]
    replicas = [Adaptive(store, FakeMetrics()) for store in stores]
    told = [
        lesson(replica, outcomes(0.5, window=bytes([number, index])))
        for number in range(10)
        for index, replica in enumerate(replicas)
    ]
    await asyncio.gather(*told)
    found = [(await learnt(replica)).actuals for replica in replicas]
    (key,) = server.client.keys()
    lives_s = server.client.ttl(key)
    for replica in replicas:
        await replica.close()

    assert found == [20, 20]
    assert key == f"foretell:1:adaptive:{MODEL.digest}".encode()
    assert 29 * 24 * 3600 < lives_s <= 30 * 24 * 3600


async def test_redis_goes_and_comes_back(server: RedisServer) -> None:
    """While it is away nothing is known or learnt, and that is counted; then learning goes on."""
    watcher = FakeMetrics()
    learning = Adaptive(RedisStates(server.url, timeout_s=10), watcher)
    await lesson(learning, outcomes(0.5))
    server.kill()
    away = await learning.alphas(MODEL, SPEC, ["80"], 1), await learning.learn(MODEL, SPEC, outcomes(0.5))
    server.start()
    back = await lesson(learning, outcomes(0.5))
    await learning.close()

    assert away == (None, None)
    assert watcher.failed == 2
    assert back.actuals == 1


async def test_redis_hangs(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits longer than the time limit, and soon nobody asks at all."""
    monkeypatch.setattr(cache_redis, "_OPEN_S", 1e9)
    watcher = FakeMetrics()
    learning = Adaptive(RedisStates(server.url, timeout_s=0.05), watcher)
    server.hang()
    found = [await learning.alphas(MODEL, SPEC, ["80"], 1) for _ in range(50)]
    found_too = [await learning.learn(MODEL, SPEC, outcomes(0.5)) for _ in range(50)]
    server.go_on()
    found_too.append(await learning.learn(MODEL, SPEC, outcomes(0.5)))
    await learning.close()

    assert all(one is None for one in (*found, *found_too))
    assert watcher.failed == 101
