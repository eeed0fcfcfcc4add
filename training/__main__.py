"""The command line of the training module; every command is a file of `training/commands`."""

import argparse
import sys

from rich import get_console
from rich.console import Console

from training import commands

_USER_ERROR, _INTERRUPTED = 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 2 and a line on stderr for whatever its user can put right, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m training", description="Make and publish forecasting models.")
    commands.add_to(parser)
    given = parser.parse_args(arguments)

    from models.signature import SignatureError
    from models.store import StoreError
    from training.errors import TrainingError

    try:
        # Rich's own, as Lightning's bar draws on it: lines printed on another would be drawn over.
        given.run(given, get_console())
    except Exception as error:  # what is none of ours is raised again
        # Only here, since it brings torch along, which most commands do without.
        from models.artifact import ArtifactError

        if not isinstance(error, TrainingError | StoreError | SignatureError | ArtifactError):
            raise
        commands.say(Console(stderr=True), f"error: {error}")
        return _USER_ERROR
    except KeyboardInterrupt:
        commands.say(Console(stderr=True), "stopped")
        return _INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
