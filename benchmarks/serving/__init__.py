"""Foretell beside other servers of the same model, in one run: `python -m benchmarks.serving --help`."""
