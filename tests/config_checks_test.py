from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

import pytest

from sqlr1_jax import config, config_checks, config_tree
from sqlr1_jax.errors import ConfigError


def changed(path: str, value: object, base: config.Config | None = None) -> config.Config:
    """The default config, or `base`, with one value replaced, unchecked."""

    def put(node: Any, names: list[str]) -> Any:
        new = value if len(names) == 1 else put(getattr(node, names[0]), names[1:])
        return dataclasses.replace(node, **{names[0]: new})

    return put(base or config.Config(), path.split("."))


@pytest.mark.parametrize("path", [*config_checks.CHOICES, *config_checks.RANGES])
def test_every_rule_names_an_existing_setting(path: str) -> None:
    assert path in dict(config_tree.leaves(config.as_dict(config.Config())))


def numeric_settings(group: type, prefix: str = "") -> dict[str, type]:
    """The type, int or float, of every numeric setting by dotted path."""
    found: dict[str, type] = {}
    for name, kind in typing.get_type_hints(group).items():
        if dataclasses.is_dataclass(kind):
            found |= numeric_settings(typing.cast(type, kind), f"{prefix}{name}.")
        elif kind in (int, float):
            found[prefix + name] = kind
    return found


def test_every_numeric_setting_has_a_range() -> None:
    assert config_checks.RANGES.keys() == numeric_settings(config.Config).keys()


@pytest.mark.parametrize(("path", "kind"), numeric_settings(config.Config).items())
def test_a_numeric_setting_takes_the_ends_of_its_range_and_nothing_beyond(path: str, kind: type) -> None:
    allowed = config_checks.RANGES[path]
    step = 1 if kind is int else 1e-9
    ends = [allowed.low + step * allowed.above_low, allowed.low - step * (not allowed.above_low)]
    if allowed.high < math.inf:
        ends += [allowed.high - step * allowed.below_high, allowed.high + step * (not allowed.below_high)]
    for inside, outside in zip(ends[::2], ends[1::2], strict=True):
        config.check(changed(path, kind(inside)))
        with pytest.raises(ConfigError, match=rf"^config\.{path} is .*; it must be .*\.$"):
            config.check(changed(path, kind(outside)))
    if allowed.also is not None:
        config.check(changed(path, kind(allowed.also)))


@pytest.mark.parametrize("path", config_checks.RANGES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_setting_is_infinite_or_not_a_number(path: str, value: float) -> None:
    with pytest.raises(ConfigError, match=path):
        config.check(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seed", -1, "config.seed is -1; it must be at least 0 and at most 4294967295."),
        ("mesh.fsdp", 0, "config.mesh.fsdp is 0; it must be -1, or at least 1."),
        ("grpo.sampling.top_k", -1, "config.grpo.sampling.top_k is -1; it must be at least 0."),
        ("grpo.sampling.min_p", 1.5, "config.grpo.sampling.min_p is 1.5; it must be at least 0 and at most 1."),
        ("grpo.clip", 50.0, "config.grpo.clip is 50.0; it must be above 0 and below 1."),
        ("grpo.kl", -0.1, "config.grpo.kl is -0.1; it must be at least 0."),
        ("grpo.optimizer.learning_rate", -1.0, "config.grpo.optimizer.learning_rate is -1.0; it must be above 0."),
        ("sft.optimizer.clip_norm", -1.0, "config.sft.optimizer.clip_norm is -1.0; it must be at least 0."),
        ("evaluate.top_p", 0.0, "config.evaluate.top_p is 0.0; it must be above 0 and at most 1."),
        ("execute.gold_factor", 0.5, "config.execute.gold_factor is 0.5; it must be 0, or at least 1."),
    ],
)
def test_a_number_that_cannot_work_is_refused_in_one_sentence(path: str, value: float, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.check(changed(path, value))
    assert str(error.value) == message


@pytest.mark.parametrize("path", config_checks.CHOICES)
def test_a_choice_takes_its_values_and_no_other(path: str) -> None:
    with_lora = changed("model.lora.rank", 2)  # which some choices need
    for value in config_checks.CHOICES[path]:
        config.check(changed(path, value, with_lora))
    with pytest.raises(ConfigError, match=path):
        config.check(changed(path, "none of them"))


def _model_config(**settings: Any) -> config.Config:
    return dataclasses.replace(config.Config(), model=config.ModelConfig(**settings))


def test_weights_in_bfloat16_train_only_adapters() -> None:
    with pytest.raises(ConfigError, match=r"param_dtype is 'bfloat16', and all weights train: .*model\.lora\.rank"):
        config.check(_model_config(param_dtype="bfloat16"))
    config.check(_model_config(param_dtype="bfloat16", lora=config.LoraConfig(rank=4)))
    config.check(dataclasses.replace(_model_config(param_dtype="bfloat16"), stages=("evaluate",)))


def test_adapters_need_matrices_of_the_model() -> None:
    with pytest.raises(ConfigError, match=r"model\.lora\.matrices is empty"):
        config.check(_model_config(lora=config.LoraConfig(rank=4, matrices=())))
    with pytest.raises(ConfigError, match=r"model\.lora\.matrices is 'gat'.*Did you mean 'gate'"):
        config.check(_model_config(lora=config.LoraConfig(rank=4, matrices=("gat",))))


def test_only_a_model_with_adapters_freezes_all_weights_or_exports_adapters() -> None:
    frozen = config.GrpoConfig(optimizer=config.OptimizerConfig(frozen=("embed",)))
    with pytest.raises(ConfigError, match=r"grpo\.optimizer\.frozen is set"):
        config.check(dataclasses.replace(_model_config(lora=config.LoraConfig(rank=4)), grpo=frozen))
    with pytest.raises(ConfigError, match=r"export\.form is 'adapter', and without model\.lora\.rank there is none"):
        config.check(dataclasses.replace(config.Config(), export=config.ExportConfig(form="adapter")))


def test_refill_needs_groups_that_are_dropped() -> None:
    with pytest.raises(ConfigError, match=r"config\.grpo\.refill is 2, .* Set keep to 'mixed', or refill to 0"):
        config.freeze({"grpo": {"refill": 2, "advantage": {"keep": "all"}}})


@pytest.mark.parametrize(
    ("values", "allowed"),
    [
        ({"samples": 8}, True),
        ({"samples": 8, "min_right": 0, "max_right": 8}, True),
        ({"samples": 0, "min_right": 5, "max_right": 3}, True),
        ({"samples": 8, "min_right": 5, "max_right": 3}, False),
        ({"samples": 4, "min_right": 4}, False),
        ({"samples": 4, "max_right": 5}, False),
    ],
)
def test_difficulty_keeps_a_range_that_a_question_can_be_in(values: dict[str, int], allowed: bool) -> None:
    if allowed:
        config.freeze({"grpo": {"difficulty": values}})
    else:
        with pytest.raises(ConfigError, match=r"config\.grpo\.difficulty keeps questions right in .* set min_right"):
            config.freeze({"grpo": {"difficulty": values}})


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


def test_a_completion_fits_its_segment() -> None:
    rows = dataclasses.replace(config.Config().grpo.rows, segment=64)
    sampling = dataclasses.replace(config.Config().grpo.sampling, max_tokens=65)
    grpo_config = dataclasses.replace(config.Config().grpo, rows=rows, sampling=sampling)
    with pytest.raises(ConfigError, match=r"grpo\.rows\.segment is 64, but a completion may have .*max_tokens=65"):
        config.check(dataclasses.replace(config.Config(), grpo=grpo_config))
    packed = dataclasses.replace(grpo_config, rows=dataclasses.replace(rows, layout="packed"))
    config.check(dataclasses.replace(config.Config(), grpo=packed))
