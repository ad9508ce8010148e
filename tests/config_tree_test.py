from __future__ import annotations

import dataclasses

import pytest

from sqlr1_jax import config_tree
from sqlr1_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    seed: int = 0
    inner: Inner = Inner()


def test_a_tree_is_built_from_nested_dicts_and_keeps_other_defaults() -> None:
    assert config_tree.build({"inner": {"rate": 2, "names": ["a", ""]}}, Outer) == Outer(0, Inner(2.0, ("a",)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": 3}, r"config\.inner is 3; it is a group of settings"),
        ({"inner": {"names": [1]}}, r"config\.inner\.names is \[1\]; it takes a tuple of names"),
        ({"seed": True}, r"config\.seed is True, a bool; it takes a int"),
        ({"inner": {"rat": 1.0}}, r"config\.inner\.rat does not exist.*rate"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_path(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_tree.build(values, Outer)


def test_a_tree_becomes_a_config_dict_and_back() -> None:
    tree = Outer(3, Inner(1.0, ("x", "y")))
    assert config_tree.build(config_tree.to_config_dict(tree).to_dict(), Outer) == tree


def test_a_path_must_name_a_setting_or_a_group() -> None:
    config_tree.check_path("inner.rate", Outer)
    with pytest.raises(ConfigError, match=r"config\.seed is a single setting"):
        config_tree.check_path("seed.x", Outer)
