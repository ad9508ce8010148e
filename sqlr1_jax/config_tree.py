"""A tree of frozen dataclasses from nested dicts, and back; `config.Config` is such a tree."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from sqlr1_jax import config_checks
from sqlr1_jax.errors import ConfigError

T = TypeVar("T")


def to_config_dict(node: Any) -> Any:
    """A tree of dataclasses as a tree of `ml_collections.ConfigDict`."""
    from ml_collections import ConfigDict

    if not dataclasses.is_dataclass(node):
        return node
    return ConfigDict({f.name: to_config_dict(getattr(node, f.name)) for f in dataclasses.fields(node)})


def check_path(path: str, tree: type) -> None:
    """Raises ConfigError if no setting of `tree` has this dotted path; the message suggests the intended one."""
    node: Any = tree
    prefix = ""
    for name in path.split("."):
        if not dataclasses.is_dataclass(node):
            raise ConfigError(f"config.{path} does not exist: config.{prefix.rstrip('.')} is a single setting.")
        types = typing.get_type_hints(node)
        config_checks.check_name(name, types, prefix)
        node, prefix = types[name], f"{prefix}{name}."


def build(values: dict, group: type[T], path: str = "") -> T:
    """A `group` with `values`, and the defaults of all others; `path` is its dotted path, with a dot at its end.

    Raises:
      ConfigError: a setting does not exist, or its value has the wrong type.
    """
    types = typing.get_type_hints(group)
    for name in values:
        config_checks.check_name(name, types, path)
    return group(**{name: _freeze_value(value, types[name], path + name) for name, value in values.items()})


def _freeze_value(value: Any, wanted: Any, path: str) -> Any:
    if dataclasses.is_dataclass(wanted):
        if not isinstance(value, dict):
            raise ConfigError(f"config.{path} is {value!r}; it is a group of settings: set config.{path}.NAME.")
        return build(value, typing.cast(type, wanted), path + ".")
    if typing.get_origin(wanted) is tuple:
        value = (value,) if isinstance(value, str) else value
        if not isinstance(value, (tuple, list)) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"config.{path} is {value!r}; it takes a tuple of names, as in ('a', 'b').")
        return tuple(item for item in value if item)  # a flag without a value, and "" in a config.json, are no name
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(f"config.{path} is {value!r}, a {type(value).__name__}; it takes a {wanted.__name__}.")
    return value


def leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted path, value) of every setting in a tree of dicts, such as `as_dict` returns."""
    found = []
    for name, value in tree.items():
        found += leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return found
