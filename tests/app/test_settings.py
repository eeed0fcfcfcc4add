"""Settings: read from the environment, and refused by name."""

from pathlib import Path

import pytest

from app.settings import Policy, Settings, SettingsError


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
