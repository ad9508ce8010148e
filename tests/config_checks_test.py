from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sqlr1_jax import config, config_checks
from sqlr1_jax.errors import ConfigError


def changed(path: str, value: object) -> config.Config:
    """The default config with one value replaced, unchecked."""

    def put(node: Any, names: list[str]) -> Any:
        new = value if len(names) == 1 else put(getattr(node, names[0]), names[1:])
        return dataclasses.replace(node, **{names[0]: new})

    return put(config.Config(), path.split("."))


@pytest.mark.parametrize("path", [*config_checks.CHOICES, *config_checks.LOWER_BOUNDS, *config.FREE_ON_RESUME])
def test_every_rule_names_an_existing_setting(path: str) -> None:
    assert path in dict(config.leaves(config.as_dict(config.Config())))


@pytest.mark.parametrize("path", config_checks.LOWER_BOUNDS)
def test_a_lower_bound_is_allowed_and_a_smaller_value_is_not(path: str) -> None:
    low = type(config_checks.get(config.Config(), path))(config_checks.LOWER_BOUNDS[path])
    config.check(changed(path, low))
    with pytest.raises(ConfigError, match=path):
        config.check(changed(path, low - 1))


@pytest.mark.parametrize("path", config_checks.CHOICES)
def test_a_choice_takes_its_values_and_no_other(path: str) -> None:
    for value in config_checks.CHOICES[path]:
        config.check(changed(path, value))
    with pytest.raises(ConfigError, match=path):
        config.check(changed(path, "none of them"))


def nested(path: str, value: object) -> dict[str, Any]:
    """A tree of dicts with one setting."""
    tree: Any = value
    for name in reversed(path.split(".")):
        tree = {name: tree}
    return tree


@pytest.mark.parametrize("old", config_checks.RENAMED)
def test_the_old_name_of_a_setting_is_answered_with_the_new_one(old: str) -> None:
    new = config_checks.RENAMED[old]
    config_checks.get(config.Config(), new)
    with pytest.raises(ConfigError) as error:
        config.freeze(nested(old, 1))
    assert str(error.value) == f"config.{old} has a new name: set config.{new}."
    with pytest.raises(ConfigError, match=rf"config\.{new}\."):
        config.check_path(old)


def test_the_old_name_of_a_group_is_answered_below_it_too() -> None:
    with pytest.raises(ConfigError, match=r"config\.cold_start has a new name: set config\.sft\."):
        config.check_path("cold_start.rows.per_microbatch")


@pytest.mark.parametrize(
    ("path", "old", "new"), [("grpo.rows.layout", "strided", "shared_prefix"), ("stages", ("cold_start",), "sft")]
)
def test_the_old_name_of_a_value_is_answered_with_the_new_one(path: str, old: object, new: str) -> None:
    with pytest.raises(ConfigError, match=f"has a new name: '{new}'"):
        config.freeze(nested(path, old))


def test_a_removed_setting_says_why() -> None:
    with pytest.raises(ConfigError, match=r"config\.grpo\.ahead was removed: .* leave the setting out"):
        config.freeze({"grpo": {"ahead": True}})
