"""The commands that change the store: aliases, splits, signatures, and the log of all that."""

from pathlib import Path

import pytest

from models.signature import Signer, Trust
from models.store import Store, Traffic
from tests.builders import publish_tiny
from tests.far import memory
from tests.training import world
from training.__main__ import main

DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three versions of `load`; nobody opens them here."""
    store = Store(tmp_path / "store")
    for _ in range(3):
        store.publish("load", lambda version, folder: DIGEST)
    return store


class Shell:
    """A user at the command line."""

    def __init__(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        self._store = store
        self._capsys = capsys

    def says(self, *arguments: str) -> str:
        """What a command prints that does what it should."""
        assert main([*arguments, "--artifacts", str(self._store.root)]) == 0
        return self._capsys.readouterr().out.rstrip("\n")

    def refuses(self, *arguments: str) -> str:
        """The one line on stderr of one that does not."""
        assert main([*arguments, "--artifacts", str(self._store.root)]) == 2
        (line,) = self._capsys.readouterr().err.splitlines()
        return line


@pytest.fixture
def shell(store: Store, capsys: pytest.CaptureFixture[str]) -> Shell:
    """At that store."""
    return Shell(store, capsys)


def test_alias_with_split_and_shadow(store: Store, shell: Shell) -> None:
    """What is given holds, and is said."""
    said = shell.says("alias", "load", "production", "1", "--split", "2=10", "--split", "3=2.5", "--shadow", "3")

    entry = store.index().models["load"]
    assert (entry.aliases, entry.traffic_of("production")) == (
        {"production": 1},
        Traffic(split={2: 10, 3: 2.5}, shadow=3),
    )
    assert said == (
        "load: production is version 1, version 2 for 10 % of clients, version 3 for 2.5 % of clients,"
        " version 3 in shadow"
    )
    assert shell.says("alias", "load", "production", "1") == "load: production is version 1"
    assert store.index().models["load"].traffic == {}
    assert "more than 100" in shell.refuses("alias", "load", "production", "1", "--split", "2=60", "--split", "3=60")
    assert "no version 9" in shell.refuses("alias", "load", "production", "1", "--shadow", "9")


@pytest.mark.parametrize("share", ["2", "2=", "two=10", "2=ten", "=10"])
def test_share_that_is_none(shell: Shell, capsys: pytest.CaptureFixture[str], share: str) -> None:
    """It is told with the option, as all that cannot be read on a command line."""
    with pytest.raises(SystemExit, match="2"):
        shell.says("alias", "load", "production", "1", "--split", share)
    assert f"argument --split: {share!r} is not VERSION=PERCENT" in capsys.readouterr().err


def test_rollback_and_unalias(store: Store, shell: Shell) -> None:
    """Back to what was before, and then away with it; either tells where there is nothing to do."""
    for version in ("1", "2"):
        shell.says("alias", "load", "production", version)

    assert shell.says("rollback", "load", "production") == "load: production is version 1 again"
    assert "stood for nothing but version 1" in shell.refuses("rollback", "load", "production")
    assert shell.says("unalias", "load", "production") == "load: production is gone"
    assert store.index().models["load"].aliases == {}
    assert "no alias 'production'" in shell.refuses("unalias", "load", "production")
    assert "no model 'sales'" in shell.refuses("rollback", "sales", "production")


def test_sign_with_a_key_of_ones_own(
    store: Store, shell: Shell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `signing-key` prints is what the service trusts; keys that are none are one line."""
    key = tmp_path / "key.pem"
    assert main(["signing-key", str(key)]) == 0
    public = capsys.readouterr().out.strip()

    assert shell.says("sign", "load", "2", "--key", str(key)) == "load version 2 is signed"
    Trust.parse(public).check("load", 2, DIGEST, store.index().models["load"].signatures[2])
    assert "no version 9" in shell.refuses("sign", "load", "9", "--key", str(key))
    assert "absent.pem: No such file" in shell.refuses("sign", "load", "2", "--key", str(tmp_path / "absent.pem"))
    assert main(["signing-key", str(key)]) == 2
    assert f"{key}: File exists" in capsys.readouterr().err


def test_train_signs_what_it_publishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a key; one that cannot be read is told before the training."""
    world.write(tmp_path / "rows.csv", world.rows(160))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(world.toml(world.given(tmp_path / "rows.csv", training={"epochs": 1})))
    signer = Signer.make(tmp_path / "key.pem")
    arguments = ["train", str(recipe), "--artifacts", str(tmp_path / "store"), "--key"]

    assert main([*arguments, str(tmp_path / "rows.csv")]) == 2
    assert "rows.csv: not a private key in PEM" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
    assert main([*arguments, str(tmp_path / "key.pem")]) == 0
    entry = Store(tmp_path / "store").index().models["tiny"]
    Trust.parse(signer.public).check("tiny", 1, entry.versions[1], entry.signatures[1])


def test_audit_shows_the_latest_changes(shell: Shell) -> None:
    """A line each, as many as are asked for, the newest last."""
    shell.says("alias", "load", "production", "1", "--split", "2=10")
    shell.says("alias", "load", "production", "3")

    lines = [line.split("  ") for line in shell.says("audit", "--last", "2").splitlines()]
    assert [line[2:] for line in lines] == [
        ["point", "model=load", "alias=production", "version=1", 'split={"2": 10.0}'],
        ["point", "model=load", "alias=production", "version=3", "from=1"],
    ]
    assert len(shell.says("audit").splitlines()) == 5
    with pytest.raises(SystemExit, match="2"):
        shell.says("audit", "--last", "0")


def test_every_command_takes_an_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Publish there what was tried here, move its aliases, sign it, look at it and at the log."""
    here, there = Store(tmp_path / "staging"), memory()
    for seed in (1, 2):
        publish_tiny(here, "load", seed=seed)
    Signer.make(tmp_path / "key.pem")

    def says(*arguments: str) -> str:
        assert main([*arguments]) == 0, capsys.readouterr().err
        return capsys.readouterr().out.rstrip("\n")

    def refuses(*arguments: str) -> str:
        assert main([*arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    source, target = ("--artifacts", str(here.root)), ("--artifacts", there)
    lies = f"{there}/load/2/model.pt"
    assert says("publish", "load", there, *source) == f"load version 2 is published: {lies}"
    assert says("publish", "load:2", there, *source) == f"load version 2 is there already: {lies}"
    assert says("publish", "load:1", there, "--key", str(tmp_path / "key.pem"), *source).startswith("load version 1 is")
    assert Store(there).index().models["load"].signatures.keys() == {1}
    assert "no version '9' (there are: 1, 2, latest)" in refuses("publish", "load:9", there, *source)

    assert says("alias", "load", "production", "1", *target) == "load: production is version 1"
    assert says("alias", "load", "production", "2", *target) == "load: production is version 2"
    assert says("rollback", "load", "production", *target) == "load: production is version 1 again"
    assert says("unalias", "load", "production", *target) == "load: production is gone"
    assert says("sign", "load", "2", "--key", str(tmp_path / "key.pem"), *target) == "load version 2 is signed"
    assert "load:1" in says("compare", "load:1", "load:2", *target)
    actions = [line.split("  ")[2] for line in says("audit", *target).splitlines()]
    assert actions == ["publish", "publish", "point", "point", "roll back", "drop", "sign"]
    assert f"{there} has no model 'sales'" in refuses("publish", "sales", str(tmp_path), *target)


def test_an_address_that_is_none(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told with the option."""
    with pytest.raises(SystemExit, match="2"):
        main(["audit", "--artifacts", "nowhere://bucket"])
    assert "argument --artifacts: nowhere:// is no protocol of fsspec" in capsys.readouterr().err
