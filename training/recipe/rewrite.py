"""A recipe's text with other values in it, and its writer's comments and order as they were."""

from typing import Any

import tomlkit
from tomlkit.container import Container

from training.recipe import Recipe


def with_values(text: str, values: dict[str, Any], found: Recipe) -> str:
    """The text without `[search]` and with the values at their full keys; `found` is the recipe that comes of it.

    Options of the text's architecture that the found one does not have go.
    """
    document = tomlkit.parse(text)
    document.pop("search", None)
    for key, value in values.items():
        *tables, last = key.split(".")
        table: Any = document
        for name in tables:
            if name not in table:
                table[name] = {}
            table = table[name]
        table[last] = value
    config: Container = document["network"].get("config", {})
    for option in set(config) - type(found.network.config).model_fields.keys():
        del config[option]
    return tomlkit.dumps(document)
