"""list the architectures, their options and defaults"""

import argparse
from typing import Any

from rich.console import Console

from training.commands import show


def arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(_: argparse.Namespace, console: Console) -> None:
    from models import networks

    lines = [["architecture", "option", "default", "valid"]]
    for name in networks.names():
        fields: dict[str, Any] = networks.config_of(name).model_json_schema()["properties"]
        for option, field in fields.items():
            limits = {key: value for key, value in field.items() if key not in {"title", "default"}}
            valid = ", ".join(map(str, limits.pop("enum", [])))
            bounds = ", ".join(f"{key} {value}" for key, value in limits.items() if key != "type")
            lines.append([name, option, str(field["default"]), valid or f"{field['type']} {bounds}".strip()])
    show(console, lines)
