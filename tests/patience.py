"""How long the tests wait for what has to come."""

PATIENCE_S = 300.0
"""Only against hanging for ever: nothing that waits is a measurement, and machines may be slow."""
