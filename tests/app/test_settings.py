"""Settings: read from the environment, and refused by name."""

import os
from pathlib import Path

import pytest

from app.settings import Policy, Settings, SettingsError, child_environment, http_processes


def test_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each field is FORETELL_ and its name."""
    monkeypatch.setenv("FORETELL_PORT", "9000")
    monkeypatch.setenv("FORETELL_ARTIFACTS", "elsewhere")
    settings = Settings.read()
    assert settings.port == 9000
    assert settings.artifacts == Path("elsewhere")
    assert settings.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FORETELL_PORT", "70000"),
        ("FORETELL_PORT", "http"),
        ("FORETELL_HTTP_PROCESSES", "-1"),
        ("FORETELL_HTTP_PROCESSES", "65"),
        ("FORETELL_MAX_STEPS", "0"),
        ("FORETELL_DEVICE", "tpu"),
        ("FORETELL_VERSIONS", "newest"),
        ("FORETELL_VERSIONS", "weather:0"),
        ("FORETELL_REDIS_URL", "localhost:6379"),
        ("FORETELL_REDIS_URL", "redis://localhost:abc"),
        ("FORETELL_GRACE_S", "-1"),
        ("FORETELL_LOG_LEVEL", "loud"),
    ],
)
def test_wrong_values_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """The message names the variable and the value."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"{variable}={value}"):
        Settings.read()


def test_variable_of_the_client_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops the start like any other, for it may have been meant to guard the service."""
    monkeypatch.setenv("FORETELL_KEY_FILE", "key")
    with pytest.raises(SettingsError, match=r"the client's, so unset it here; did you mean FORETELL_KEYS_FILE"):
        Settings.read()


def test_unknown_variable_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt setting stops the start instead of being ignored."""
    monkeypatch.setenv("FORETELL_MAX_STEP", "5")
    with pytest.raises(SettingsError, match=r"FORETELL_MAX_STEP: unknown setting; did you mean FORETELL_MAX_STEPS"):
        Settings.read()


def test_every_setting_is_described() -> None:
    """--help lists every field with its default."""
    text = Settings.describe()
    for name, field in Settings.model_fields.items():
        assert f"FORETELL_{name.upper()}" in text
        assert field.description


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("latest", {("a", 3), ("b", 1)}),
        ("latest:2", {("a", 2), ("a", 3), ("b", 1)}),
        ("all", {("a", 1), ("a", 2), ("a", 3), ("b", 1)}),
        ("a:1, b:1", {("a", 1), ("b", 1)}),
    ],
)
def test_policies(text: str, chosen: set[tuple[str, int]]) -> None:
    """latest N, all, and a list."""
    policy = Policy.parse(text)
    published = {"a": frozenset({1, 2, 3}), "b": frozenset({1})}
    found = {(name, n) for name, every in published.items() for n in every if policy.chooses(name, n, every)}
    assert found == chosen


@pytest.mark.parametrize(
    ("cores", "device", "processes"),
    [(1, "cpu", 0), (1, "auto", 0), (2, "cpu", 1), (2, "auto", 1), (16, "cpu", 1), (4, "cuda", 3), (16, "cuda", 4)],
)
def test_http_processes_that_suit_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, device: str, processes: int
) -> None:
    """None on one core, one beside an engine on the CPU, and up to four beside a GPU's."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert http_processes(Settings(device=device)) == processes


@pytest.mark.parametrize("processes", [0, 1, 7])
def test_http_processes_as_set(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    """What is set holds, whatever the cores."""
    monkeypatch.setenv("FORETELL_HTTP_PROCESSES", str(processes))
    assert http_processes(Settings.read()) == processes


def test_children_have_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of ours reads the same settings, and counts where it is told to and nowhere else."""
    monkeypatch.setenv("FORETELL_MAX_STEPS", "7")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/elsewhere")
    environment = child_environment()
    assert environment["FORETELL_MAX_STEPS"] == "7"
    assert "PROMETHEUS_MULTIPROC_DIR" not in environment


def test_a_refused_value_is_told_in_our_words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting, the value, and what it must be: nothing of the library that checks it."""
    monkeypatch.setenv("FORETELL_VERSIONS", "zz")
    with pytest.raises(SettingsError, match=r"^FORETELL_VERSIONS=zz: must be all, latest:N"):
        Settings.read()
