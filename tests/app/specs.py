"""A spec of any shape, with no network behind it and no example that fits: for what only reads specs."""

from collections.abc import Sequence

from models.spec import Role, Spec
from tests.builders import features, network, spec_for

_WHOLE = dict(spec_for(network()))


def spec_of(roles: Sequence[Role] = ("target",), **fields: object) -> Spec:
    """With features called as `tests.builders.features` calls them, a window of 4 rows and 2 steps a pass."""
    shape = {"window": 4, "horizon": 2, "features": features(roles)}
    targets = [feature.name for feature in shape["features"] if feature.role == "target"]
    return Spec.model_construct(**(_WHOLE | shape | {"targets": targets} | fields))
