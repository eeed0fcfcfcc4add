"""The command `foretell`; it needs the extra `cli`."""

import os
import sys


def main() -> None:
    """Run it, and exit with its status."""
    try:
        sys.exit(_run())
    except KeyboardInterrupt:
        # At once, and without what Python would say of it: also while the parts are imported.
        os._exit(130)


def _run() -> int:
    try:
        from foretell.cli.main import run
    except ModuleNotFoundError as error:
        if error.name not in ("click", "plotext"):
            raise
        sys.stderr.write(f"foretell: {error.name} is missing: pip install 'foretell-client[cli]'\n")
        return 2
    return run()


if __name__ == "__main__":
    main()
