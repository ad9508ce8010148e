import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax import config, config_checks, config_tree, presets, resume
from sqlr1_jax.errors import ConfigError

LEAVES = config_tree.leaves(config.as_dict(config.Config()))


def test_leaves_are_the_settings_by_dotted_path() -> None:
    tree = {"seed": 1, "grpo": {"steps": 2, "rows": {"segment_buckets": 3}}, "stages": ("data",)}
    assert config_tree.leaves(tree) == [
        ("seed", 1),
        ("grpo.steps", 2),
        ("grpo.rows.segment_buckets", 3),
        ("stages", ("data",)),
    ]
    assert all(config_checks.get(config.Config(), path) == value for path, value in LEAVES)


def test_defaults_survive_a_config_dict_and_json() -> None:
    assert config.freeze(config.default()) == config.Config()
    assert config.freeze(json.loads(json.dumps(config.as_dict(config.Config())))) == config.Config()


def test_a_frozen_config_is_hashable_by_value() -> None:
    one, same, other = (config.freeze({"grpo": {"steps": steps}}) for steps in (7, 7, 8))
    assert hash(one) == hash(same)
    assert one != other


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"grpo": {"stpes": 3}}, "config.grpo.stpes does not exist. Did you mean config.grpo.steps?"),
        ({"grpoo": {}}, "config.grpoo does not exist. Did you mean config.grpo?"),
        ({"model": {"zzzz": 1}}, "config.model.zzzz does not exist. The settings are: size, path,"),
        ({"grpo": 3}, "config.grpo is 3; it is a group of settings: set config.grpo.NAME."),
        ({"grpo": {"steps": 1.5}}, "config.grpo.steps is 1.5, a float; it takes a int."),
        ({"grpo": {"steps": True}}, "config.grpo.steps is True, a bool; it takes a int."),
        ({"grpo": {"clip": True}}, "config.grpo.clip is True, a bool; it takes a float."),
        ({"stages": 3}, "config.stages is 3; it takes a tuple of names"),
        ({"stages": ""}, "config.stages is empty; it takes one or more of 'data', 'sft'"),
        ({"stages": ("date",)}, "config.stages is 'date'; it takes one of"),
        ({"model": {"size": "70b"}}, "config.model.size is '70b'; it takes one of 'tiny'"),
        ({"data": {"schema": "compcat"}}, "Did you mean 'compact'?"),
        ({"grpo": {"samples": 1}}, "config.grpo.samples is 1; it must be at least 2."),
        ({"data": {"train": "/data/spider"}}, "it takes PREFIX:PATH, as in spider:/data/spider."),
        ({"data": {"train": "spidr:/data"}}, "Did you mean 'spider'?"),
        ({"data": {"train": "spider:"}}, "the path after the prefix is missing"),
        ({"data": {"synth": {"teacher_errors": 1.5}}}, "it must be at least 0 and at most 1."),
        ({"grpo": {"sampling": {"top_p": 0.0}}}, "config.grpo.sampling.top_p is 0.0; it must be above 0 and at most"),
        ({"export": {"step": "newest"}}, "it takes last, best or a step's number"),
    ],
)
def test_an_error_names_the_key_and_the_fix(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.freeze(tree)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@given(st.sampled_from([path for path, _ in LEAVES]), st.integers(0, 10**6))
def test_a_key_with_a_letter_missing_gets_a_suggestion_of_the_right_key(path: str, seed: int) -> None:
    *groups, last = path.split(".")
    if len(last) < 4:
        return
    cut = random.Random(seed).randrange(len(last))
    typo = last[:cut] + last[cut + 1 :]
    tree: dict[str, Any] = {typo: 0}
    for group in reversed(groups):
        tree = {group: tree}
    with pytest.raises(ConfigError, match="does not exist") as error:
        config.freeze(tree)
    meant = [other for other, _ in LEAVES if other in _one_letter_more(groups, typo)]
    assert path in meant
    assert any(f"Did you mean config.{other}?" in str(error.value) for other in meant)


def _one_letter_more(groups: list[str], typo: str) -> set[str]:
    letters = "abcdefghijklmnopqrstuvwxyz_0123456789"
    longer = (typo[:place] + letter + typo[place:] for place in range(len(typo) + 1) for letter in letters)
    return {".".join([*groups, name]) for name in longer}


def test_integers_are_accepted_as_floats_and_single_names_as_tuples() -> None:
    cfg = config.freeze({"grpo": {"kl": 0}, "stages": "grpo"})
    assert cfg.grpo.kl == 0.0 and isinstance(cfg.grpo.kl, float)
    assert cfg.stages == ("grpo",)


@pytest.mark.parametrize(("text", "lists"), [("", ()), ("exclude.jsonl", ("exclude.jsonl",)), ([""], ())])
def test_a_single_list_of_what_to_leave_out_is_read_as_a_tuple(
    text: Any, lists: tuple[str, ...], tmp_path: Path
) -> None:
    """A config.json may hold it as one string, which is empty if there is none."""
    tree = config.as_dict(config.Config())
    tree["data"]["exclude"] = text
    (tmp_path / "config.json").write_text(json.dumps(tree))
    loaded = config.load(tmp_path / "config.json")
    assert loaded.data.exclude == lists
    assert loaded == config.freeze({"data": {"exclude": lists}})


ABLATIONS = {
    "without format": ("grpo.reward.format", 0.0),
    "without execution": ("grpo.reward.execution", 0.0),
    "without result": ("grpo.reward.result", 0.0),
    "without length": ("grpo.reward.length", 0.0),
    "without cold start": ("stages", ("data", "grpo", "evaluate", "export")),
    "without reasoning": ("data.form", "direct"),
    "without teacher errors": ("data.synth.teacher_errors", 0.0),
    "shuffled advantages": ("grpo.advantage.shuffled", True),
    "the paper's groups": ("grpo.advantage.keep", "all"),
    "GDPO": ("grpo.advantage.normalize", "parts"),
    "Dr. GRPO": ("grpo.advantage.normalize", "none"),
}


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("size", ["tiny", "smoke"])
def test_an_ablation_is_one_line_of_config(size: str, name: str) -> None:
    path, value = ABLATIONS[name]
    tree = presets.get(size)
    before = config.freeze(tree)
    *groups, last = path.split(".")
    node = tree
    for group in groups:
        node = node[group]
    node[last] = value
    assert config_checks.get(config.freeze(tree), path) == value != config_checks.get(before, path)
    assert list(resume.differences(before, config.freeze(tree))) == [path] * (path not in resume.FREE)


def test_paper_constants_are_the_defaults() -> None:
    grpo = config.GrpoConfig()
    assert (grpo.prompts, grpo.samples, grpo.sampling.temperature, grpo.sampling.top_p) == (8, 8, 1.1, 1.0)
    assert (grpo.clip, grpo.clip_high, grpo.kl, grpo.entropy) == (0.2, 0.2, 0.001, 0.001)
    assert (grpo.optimizer.learning_rate, grpo.optimizer.clip_norm, grpo.optimizer.schedule) == (3e-7, 1.0, "constant")
    assert (grpo.aggregation, grpo.advantage.normalize, grpo.reward.rule) == ("token", "group", "spider")
