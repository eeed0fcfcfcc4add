"""Everything that reads what comes from elsewhere is given rubbish: bodies, requests, frames, archives, what is kept.

What is tried is the same every time, so that no run fails by luck. For a night, with other rubbish each time:

    pytest tests/fuzz --hypothesis-profile=long -n auto
"""

from hypothesis import HealthCheck, settings

LONG = settings.get_current_profile_name() == "long"
_LONGER = 50
"""So many times as many examples a night has."""


def tries(examples: int) -> settings:
    """So many examples, or many more of others in the long profile."""
    return settings(
        max_examples=examples * (_LONGER if LONG else 1),
        derandomize=not LONG,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
