"""How long the tests wait for what has to come."""

PATIENCE_S = 300.0
"""Only against hanging for ever, nothing here is a measurement: a machine of a fifth of the usual speed is in time."""
