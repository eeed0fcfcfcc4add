"""The command `foretell`, inside this process and as a process of its own."""

import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foretell.cli.bench import Tally, quantile_ms
from foretell.cli.ending import plain
from foretell.cli.main import run
from tests.app.serving import wait_until
from tests.client.services import ADMIN, CSV, HEAD, RESULTS, WINDOW, Service, raw, real
from tests.patience import PATIENCE_S

FORETELL = [sys.executable, "-m", "foretell"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all of these."""
    with real(tmp_path_factory.mktemp("c")) as service:
        yield service


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, service: Service) -> None:
    """What a user's shell has."""
    monkeypatch.setenv("FORETELL_URL", service.url)
    monkeypatch.setenv("FORETELL_KEY", ADMIN)
    monkeypatch.delenv("FORETELL_KEY_FILE", raising=False)


@pytest.fixture
def week(tmp_path: Path) -> str:
    """A file with a window."""
    (tmp_path / "week.csv").write_text(CSV)
    return str(tmp_path / "week.csv")


Said = pytest.CaptureFixture[str]


def rows(text: str) -> list[dict[str, str]]:
    """Of CSV."""
    return list(csv.DictReader(io.StringIO(text)))


# Forecasts


def test_a_forecast(week: str, capsys: Said) -> None:
    """A row a step on stdout, with bounds; nothing else."""
    assert run(["forecast", week, "--steps", "3", "--level", "80"]) == 0
    out, err = capsys.readouterr()
    found = rows(out)
    assert [row["time"] for row in found] == [f"2026-01-01T{hour:02}:00:00+00:00" for hour in (8, 9, 10)]
    assert [row["step"] for row in found] == ["1", "2", "3"]
    assert all(float(row["target_0_lower_80"]) < float(row["target_0"]) for row in found)
    assert err == ""


def test_a_forecast_goes_to_a_file(week: str, tmp_path: Path, capsys: Said) -> None:
    """CSV or JSON, as its name ends; both say the same."""
    table, objects = tmp_path / "out.csv", tmp_path / "out.json"
    assert run(["forecast", week, "--steps", "2", "--output", str(table)]) == 0
    assert run(["forecast", week, "--steps", "2", "--output", str(objects)]) == 0
    assert capsys.readouterr().out == ""
    read = json.loads(objects.read_text())
    assert [row["target_0"] for row in read] == [float(row["target_0"]) for row in rows(table.read_text())]
    assert run(["forecast", week, "--steps", "2", "--output", str(tmp_path / "no" / "x")]) == 2
    assert capsys.readouterr().err.endswith("x: No such file or directory\n")


@pytest.mark.parametrize("body", [CSV, json.dumps({"window": WINDOW, "start": "2026-01-01T00:00:00Z"})])
def test_a_forecast_of_stdin(body: str, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is, its first bytes say."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(body.encode())))
    assert run(["forecast", "-", "--steps", "1", "--plot", "--width", "60"]) == 0
    out, err = capsys.readouterr()
    assert rows(out)[0]["time"] == "2026-01-01T08:00:00+00:00"
    assert "history" in err


def test_a_drawing(week: str, capsys: Said) -> None:
    """On stderr, as wide as it may be, without colours where no terminal is; the bounds are within its scale."""
    assert run(["forecast", week, "--steps", "3", "--level", "80", "--plot", "--width", "60"]) == 0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[0].strip() == "target_0, load 2"
    assert all(any(word in line for line in lines) for word in ("history", "forecast", "80 %"))
    assert "\x1b" not in err
    scale = [float(found[1]) for line in lines if (found := re.match(r" *(-?\d+\.\d+)┤", line))]
    bounds = [float(row[f"target_0_{side}_80"]) for row in rows(out) for side in ("lower", "upper")]
    assert (max(scale), min(scale)) == pytest.approx((max(bounds), min(bounds)), abs=0.06)
    assert err.count("·") >= 6
    ticks = lines[-1].split()[1::2]
    assert ticks == sorted(ticks)
    assert (len(ticks) >= 3, ticks[0]) == (True, "02:00")


def test_only_known_targets_are_drawn(week: str, capsys: Said) -> None:
    """Another is named, with those that there are."""
    assert run(["forecast", week, "--steps", "2", "--plot", "--target", "nix"]) == 2
    assert "--target nix: there are target_0" in capsys.readouterr().err


def test_steps_as_they_come(week: str, capsys: Said) -> None:
    """The same rows, one after the other; drawn or as JSON they are not."""
    assert run(["forecast", week, "--steps", "3", "--level", "80"]) == 0
    whole = capsys.readouterr().out
    assert run(["forecast", week, "--steps", "3", "--level", "80", "--stream"]) == 0
    assert capsys.readouterr().out == whole
    assert run(["forecast", week, "--steps", "3", "--stream", "--plot"]) == 2
    assert "--stream writes CSV to stdout" in capsys.readouterr().err


# Batches


@pytest.fixture
def many(tmp_path: Path) -> str:
    """A file with three windows, of which one is too short and two have times."""
    windows = [{"window": WINDOW}, {"window": WINDOW[:3]}, {"window": WINDOW, "start": "2026-01-01T00:00:00Z"}]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(window) + "\n" for window in windows))
    return str(tmp_path / "many.jsonl")


def test_a_batch(many: str, tmp_path: Path, capsys: Said) -> None:
    """A row a window and step; what has no forecast is a line on stderr and the status."""
    assert run(["batch", many, "--steps", "2", "--level", "80"]) == 1
    out, err = capsys.readouterr()
    found = rows(out)
    assert list(found[0]) == ["window", "time", "step", "target_0", "target_0_lower_80", "target_0_upper_80"]
    assert [(row["window"], row["step"]) for row in found] == [("0", "1"), ("0", "2"), ("2", "1"), ("2", "2")]
    assert [row["time"] for row in found] == ["", "", "2026-01-01T08:00:00+00:00", "2026-01-01T09:00:00+00:00"]
    assert [float(row["target_0"]) for row in found[:2]] == [float(row["target_0"]) for row in found[2:]]
    wrong, sum_ = err.splitlines()
    assert re.match(r"foretell: window 1: line 2: window: .* \(422 invalid\)", wrong)
    assert sum_ == "foretell: 1 of 3 windows have no forecast"

    file = tmp_path / "out.jsonl"
    assert run(["batch", many, "--steps", "2", "--level", "80", "--output", str(file)]) == 1
    objects = [json.loads(line) for line in file.read_text().splitlines()]
    assert [one["target_0"] for one in objects] == [float(row["target_0"]) for row in found]
    assert objects[0]["time"] is None
    assert not (tmp_path / "out.jsonl.part").exists()


def test_a_batch_that_goes_well(week: str, tmp_path: Path, capsys: Said) -> None:
    """Nothing but its rows, in the file that was named."""
    file = tmp_path / "out.csv"
    assert run(["batch", week, "--steps", "2", "--output", str(file)]) == 0
    assert capsys.readouterr() == ("", "")
    assert [row["time"] for row in rows(file.read_text())] == [f"2026-01-01T{hour:02}:00:00+00:00" for hour in (8, 9)]


def test_how_far_a_batch_is(week: str, many: str, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, where that is a terminal, and out of the way of what is told there."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run(["batch", many, "--steps", "2"]) == 1
    err = capsys.readouterr().err
    assert "\r1 of 3 windows\r\033[Kforetell: window 1" in err
    assert "\r3 of 3 windows\r\033[K" in err


def test_what_came_of_a_batch_that_breaks_off(week: str, tmp_path: Path, capsys: Said) -> None:
    """It is kept, but not under the name of a whole one; of one that is refused there is nothing."""
    said = [{**HEAD, "windows": 2}, RESULTS[0]]
    body = "".join(json.dumps(one) + "\n" for one in said).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"

    def half(connection: socket.socket) -> None:
        while b"T07:00" not in connection.recv(65536):
            pass
        connection.sendall(head + body)
        connection.shutdown(socket.SHUT_WR)

    out = tmp_path / "out.csv"
    with raw(half) as url:
        assert run(["batch", week, "--steps", "2", "--output", str(out), "--url", url]) == 3
    assert "cut off" in capsys.readouterr().err
    assert [row["a"] for row in rows((tmp_path / "out.csv.part").read_text())] == ["1.5", "2.5"]
    assert run(["batch", week, "--steps", "0", "--output", str(out)]) == 1
    assert sorted(path.name for path in tmp_path.glob("out*")) == []


# What ends otherwise


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["forecast"], 2, "Missing argument 'FILE'. (foretell forecast --help)"),
        (["forcast"], 2, "No such command 'forcast'"),
        (["forecast", "nix.csv", "--steps", "1"], 2, "nix.csv: No such file or directory"),
        (["forecast", "WEEK", "--steps", "0"], 1, r"query.steps: .* \(422 invalid\) \[request [0-9a-f]{32}\]"),
        (["forecast", "WEEK", "--steps", "1", "--model", "nix"], 1, "there is no model 'nix'"),
        (["forecast", "WEEK", "--steps", "1", "--url", "http://127.0.0.1:1", "--timeout", "0.1"], 3, "refused"),
        (["models", "--url", "127.0.0.1"], 2, "url: '127.0.0.1' is none"),
        (["models", "--version", "1"], 2, "--version goes with a NAME"),
        (["models", "--key-file", "nix"], 2, "nix: No such file or directory"),
        (["promote", "load", "9"], 1, r"\(404 unknown-version\)"),
        (["promote", "load", "1", "--split", "two"], 2, "VERSION=PERCENT is needed"),
        (["rollback", "load", "--alias", "nix"], 1, r"\(404"),
        (["backtest", "WEEK", "--steps", "1000000"], 1, "steps"),
        (["batch", "WEEK", "--steps", "0"], 1, r"query.steps: .* \(422 invalid\)"),
        (["batch", "nix.csv", "--steps", "1"], 2, "nix.csv: No such file or directory"),
        (["batch", "WEEK", "--steps", "1", "--output", "no/x.csv"], 2, "no/x.csv: No such file or directory"),
        (["batch", "WEEK", "--steps", "1", "--output", "x.json"], 2, "a name that ends with .jsonl or .csv"),
        (["load", "load", "9"], 1, r"\(404 unknown-version\)"),
        (["unload", "nix", "1"], 1, r"\(404 unknown-model\)"),
        (["audit", "--last", "0"], 2, "0 is not in the range"),
        (["ready", "--url", "http://127.0.0.1:1"], 3, "refused"),
        (["bench", "--model", "nix"], 1, "nix"),
    ],
)
def test_one_line_and_a_status(arguments: list[str], status: int, says: str, week: str, capsys: Said) -> None:
    """Whatever goes wrong: where it is, on stderr, and nothing on stdout."""
    assert run([week if argument == "WEEK" else argument for argument in arguments]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(says.replace("(foretell", r"\(foretell").replace("help)", r"help\)"), err)
    assert err.startswith("foretell: ")
    assert err.count("\n") == 1


def test_another_server(capsys: Said) -> None:
    """What answers, and is no Foretell service, is as good as nobody."""

    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")

    with raw(answer) as url:
        assert run(["models", "--url", url]) == 3
    assert "status 200 with something unexpected" in capsys.readouterr().err


def test_keys(service: Service, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file or a variable, and from nowhere else; without one it is said how to give it."""
    monkeypatch.delenv("FORETELL_KEY")
    assert run(["models"]) == 1
    assert "set FORETELL_KEY, or give --key-file" in capsys.readouterr().err
    (tmp_path / "key").write_text(f"{service.key}\n")
    assert run(["models", "--key-file", str(tmp_path / "key")]) == 0
    assert run(["models", "--key", "x"]) == 2
    monkeypatch.setenv("FORETELL_KEY", service.spent)
    assert {run(["models", "--timeout", "5"]) for _ in range(2)} == {0, 4}
    assert "429 over-quota" in capsys.readouterr().err


def test_a_terminal_is_told_nothing_by_others() -> None:
    """What a server says cannot move its cursor."""
    assert plain("a\x1b[2Jb\nc\r") == "a [2Jb c "


# The other commands


def test_models(capsys: Said) -> None:
    """A table, and what one of them takes."""
    assert run(["models"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["model", "version", "state", "aliases"],
        ["load", "1", "ready"],
        ["load", "2", "ready"],
    ]
    assert run(["models", "load"]) == 0
    out = capsys.readouterr().out
    assert "8 rows, one each PT1H" in out
    assert "levels 80, 90" in out
    assert re.search(r"target_0 +target", out)


def test_promote_and_rollback(capsys: Said) -> None:
    """What the alias stands for then is said."""
    assert run(["promote", "load", "1"]) == 0
    assert run(["promote", "load", "1", "--split", "2=12.5"]) == 0
    assert run(["promote", "load", "2", "--shadow", "1", "--wait", "20"]) == 0
    assert run(["rollback", "load"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "load production: version 1",
        "load production: version 1, 2 for 12.5 %",
        "load production: version 2, shadow 1",
        "load production: version 2",
    ]
    assert run(["models"]) == 0
    assert "load         2  ready  production" in capsys.readouterr().out


def test_load_unload_and_audit(tmp_path: Path, capsys: Said) -> None:
    """The state is said; the log says who did it."""
    assert run(["unload", "load", "1"]) == 0
    assert run(["load", "load", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == ["load 1: unloaded (unloaded by hand)", "load 1: ready"]
    assert run(["audit", "--last", "2"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert re.split(" {2,}", header) == ["time", "by", "action", "details"]
    assert [re.split(" {2,}", line)[1] for line in lines] == ["admin", "admin"]
    assert run(["audit", "--last", "1", "--output", str(tmp_path / "log.json")]) == 0
    (change,) = json.loads((tmp_path / "log.json").read_text())
    assert (change["by"], type(change["details"])) == ("admin", dict)
    assert run(["audit", "--last", "1", "--format", "csv"]) == 0
    assert [row["action"] for row in rows(capsys.readouterr().out)] == [change["action"]]


def test_backtest(tmp_path: Path, capsys: Said) -> None:
    """The means by target, or every step."""
    lines = [f"2026-01-{1 + row // 24:02}T{row % 24:02}:00:00Z,{10 + row % 5},{15 + row % 3}\n" for row in range(60)]
    file = tmp_path / "long.csv"
    file.write_text("time,target_0,past_1\n" + "".join(lines))
    asked = ["backtest", str(file), "--steps", "2", "--stride", "5", "--level", "80", "--version", "1"]
    assert run(asked) == 0
    first, header, line = capsys.readouterr().out.splitlines()
    assert first == "load 1: 11 windows, 0 skipped"
    assert run([*asked, "--format", "csv"]) == 0
    steps = rows(capsys.readouterr().out)
    means = dict(zip(re.split(" {2,}", header), re.split(" {2,}", line), strict=True))
    assert float(means["mae"]) == pytest.approx(sum(float(row["mae"]) for row in steps) / 2, rel=1e-3)
    assert means["coverage 80 %"] == "1"
    assert [row["step"] for row in steps] == ["1", "2"]


@pytest.mark.parametrize("loop", [["--connections", "2"], ["--rate", "40"]])
def test_bench(loop: list[str], capsys: Said) -> None:
    """Answers are counted, the cache has none of them, and what the load itself cost is said."""
    assert run(["bench", "--seconds", "0.5", "--warm-up", "0.1", "--steps", "2", *loop]) == 0
    out = capsys.readouterr().out
    counts = {found[1]: int(found[2]) for found in re.finditer(r"^(\w+) +(\d+)", out, re.MULTILINE)}
    assert counts["right"] > 0
    assert (counts["refused"], counts["failed"], counts["cache"]) == (0, 0, 0)
    assert re.search(r"p50 [\d.]+, p90 [\d.]+, p99 [\d.]+, max [\d.]+ ms", out)
    assert re.search(r"generator +[\d.]+ +of a core", out)


def test_bench_asks_for_more_than_it_can_send(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends all the same, and tells what it has not sent."""
    monkeypatch.setattr("foretell.cli.bench._MOST_AT_ONCE", 10)
    assert run(["bench", "--seconds", "0.3", "--warm-up", "0", "--steps", "1", "--rate", "1e9"]) in (0, 4)
    assert re.search(r"^unsent +\d+", capsys.readouterr().out, re.MULTILINE)


def test_quantiles() -> None:
    """The nearest rank; of nothing there is none."""
    tally = Tally(latencies_s=[number / 1000 for number in range(100, 0, -1)])
    assert [tally.quantile_ms(share) for share in (0.5, 0.9, 0.99, 1)] == pytest.approx([50, 90, 99, 100])
    assert quantile_ms([], 0.5) is None


def test_ready(capsys: Said) -> None:
    """With or without waiting."""
    assert run(["ready", "--wait", "5"]) == 0
    assert capsys.readouterr().out == "ready\n"


def test_ready_behind_a_proxy(capsys: Said) -> None:
    """One that has nobody to ask yet is not ready; it is asked again, until it is or the time is over."""
    asked = list[object]()

    def answer(connection: socket.socket) -> None:
        asked.append(connection.recv(65536))
        status, body = (b"502 Bad Gateway", b"bad") if len(asked) < 3 else (b"200 OK", b'{"ready": true}')
        head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        connection.sendall(head % (status, len(body)) + body)

    with raw(answer) as url:
        assert run(["ready", "--url", url]) == 4
        assert "status 502, and not from a Foretell service: 'bad'" in capsys.readouterr().err
        assert run(["ready", "--url", url, "--wait", "60"]) == 0
    assert len(asked) == 3


# As a process


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run it."""
    return subprocess.run(
        [*FORETELL, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE_S, **options
    )


def test_the_command_itself(week: str) -> None:
    """Its output, its status and its one line, as a shell gets them."""
    done, wrong = command("forecast", week, "--steps", "2"), command("forecast", "nix.csv", "--steps", "2")
    assert (done.returncode, len(rows(done.stdout)), done.stderr) == (0, 2, "")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "foretell: nix.csv: No such file or directory\n"


def test_nobody_reads() -> None:
    """A pipe whose reader has gone ends it quietly."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        done = subprocess.run([*FORETELL, "models"], stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_interrupted(week: str) -> None:
    """Ctrl-C while it waits for an answer: a status and no traceback."""
    asked = list[object]()
    with raw(asked.append) as url:
        # Whoever runs the tests in the background may have the signal ignored, and so all that is started there.
        running = subprocess.Popen(
            ["env", "--default-signal=INT", *FORETELL, "forecast", week, "--steps", "1", "--url", url],
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: bool(asked))
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    assert err.strip() == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """A script for each shell that calls the command back, which then offers what fits."""
    script = command("completion", shell)
    assert (script.returncode, script.stderr) == (0, "")
    assert f"_FORETELL_COMPLETE={shell}_complete" in script.stdout
    asked = {"COMP_WORDS": "foretell fore", "COMP_CWORD": "1" if shell != "fish" else "fore"}
    offered = command(env={**os.environ, **asked, "_FORETELL_COMPLETE": f"{shell}_complete"})
    assert "forecast" in offered.stdout
    assert "models" not in offered.stdout


def test_completion_in_a_shell() -> None:
    """Bash takes the script."""
    script = command("completion", "bash").stdout
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\ncomplete -p foretell"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()[-1]) == (0, "foretell")
