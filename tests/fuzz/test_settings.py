"""Settings of whatever an environment can hold: they are valid, or the variable that is not is named."""

import os
from pathlib import Path
from unittest.mock import patch

import hypothesis.strategies as st
from hypothesis import example, given

from app.settings import PREFIX, Policy, Settings, SettingsError, http_processes
from tests.fuzz import tries
from tests.fuzz.rubbish import NO_NUMBERS, NUMBERS

_SECRET = "fk_" + "s3cret" * 8
VALUES = st.one_of(
    st.sampled_from(
        [*NUMBERS[:25], *NO_NUMBERS, "", " ", "-1", "0", "1e9", "nan", "inf", "None", "[]", "{}", '{"a":1}']
    ),
    st.sampled_from(
        ["latest:", "latest:0", "all,", ":1", "a:1,b:2", "cuda:", "cuda:99", "cpu\n", "redis://", "rediss://u:p@[::1"]
    ),
    st.sampled_from(
        [
            "redis://:pass@h:99999",
            "unix:///x",
            "http://a,https://b",
            "*",
            "null",
            "/dev/null",
            "/",
            "~",
            _SECRET,
            "\udcff",
        ]
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=5),
)
NAMES = st.one_of(
    st.sampled_from(sorted(Settings.model_fields)).map(lambda name: PREFIX + name.upper()),
    st.sampled_from([*(PREFIX + name for name in ("", "X", "PORT_", "Port", "port")), "foretell_PORT", "OTHER"]),
)


@tries(500)
@given(st.dictionaries(NAMES, VALUES, max_size=3))
@example({"FORETELL_ADMIN_KEY": _SECRET, "FORETELL_PORT": "x"})
@example({"FORETELL_POLL_S": "inf"})
@example({"FORETELL_CACHE_TTL_S": "1e999"})
@example({"FORETELL_REDIS_URL": "redis://:s3cret@h:99999"})
@example({"FORETELL_ADMIN_KEY": "s3cret"})
@example({"FORETELL_ARTIFACTS": "s3://somebody:s3cret@bucket/models"})
@example({"FORETELL_ARTIFACTS": "nowhere://somebody:s3cret@bucket/models"})
@example({"FORETELL_ADMIN_KEY": "s3cret\udcff"})
def test_settings(given: dict[str, str]) -> None:
    """A SettingsError in one line that names a variable and tells no secret, or settings that can be worked with."""
    before = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    with patch.dict(os.environ, {**before, **given}, clear=True):
        try:
            settings = Settings.read()
        except SettingsError as error:
            told = str(error)
            assert PREFIX in told.upper()
            assert not any(secret in told for secret in _secrets(given))
            return
    assert isinstance(settings.artifacts, Path | str)
    assert http_processes(settings) >= 0
    Policy.parse(settings.versions)
    for name, value in settings:
        # A time that never ends, or is none, breaks whoever waits for it.
        assert not isinstance(value, float) or 0 <= value < float("inf"), name
    assert not any(secret in repr(settings) for secret in _secrets(given))


def _secrets(given: dict[str, str]) -> list[str]:
    """What stands where a key or a password does."""
    key, url = given.get("FORETELL_ADMIN_KEY", ""), given.get("FORETELL_REDIS_URL", "")
    url += given.get("FORETELL_ARTIFACTS", "")
    return [secret for secret in ("s3cret",) if secret in key + url and list(given.values()).count(_SECRET) < 2]
