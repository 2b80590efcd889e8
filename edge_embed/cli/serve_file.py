"""The TOML file that ``edge-embed serve --config`` takes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_settings(path: Path, options: Mapping[str, click.Parameter]) -> dict[str, Any]:
    """The file's values by the names of the command's parameters.

    Args:
        path: a TOML file; its keys are the flags without dashes in front, ``models`` the models.
        options: the command's parameters by name.

    Raises:
        ValueError: it is not TOML, or a key is no option.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(str(error)) from None
    by_flag = {}
    for name, option in options.items():
        by_flag[name] = name
        for flag in option.opts:
            by_flag[flag.lstrip("-")] = name
            by_flag[flag.lstrip("-").replace("-", "_")] = name
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in by_flag:
            raise ValueError(f"{key!r} is not an option of `edge-embed serve`")
        name = by_flag[key]
        _check(key, value)
        if isinstance(value, list) and not (
            options[name].multiple if isinstance(options[name], click.Option) else True
        ):
            raise ValueError(f"{key!r} takes one value")
        many = isinstance(options[name], click.Argument) or getattr(options[name], "multiple", False)
        found[name] = [value] if many and not isinstance(value, list) else value
    return found


def _check(key: str, value: Any) -> None:
    """Raises ValueError for what no flag could say."""
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, (str, int, float)):
            raise ValueError(f"{key!r} is a {type(one).__name__}, not a word or a number")
