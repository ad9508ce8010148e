from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax import config
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.prompt import Prompt
from sqlr1_jax.distributed import sharding
from sqlr1_jax.evaluate.content_key import content_key, weights_digest
from sqlr1_jax.evaluate.heldout import HeldoutSet
from sqlr1_jax.train.context import RunContext


@given(st.integers(0, 23), st.sampled_from(["float32", "bfloat16"]))
def test_any_change_of_one_number_changes_the_digest(position: int, dtype: str) -> None:
    weights = jnp.arange(24, dtype=dtype).reshape(2, 3, 4)
    index = np.unravel_index(position, weights.shape)
    other = weights.at[index].set(weights[index] + 1)
    assert weights_digest({"w": weights}) == weights_digest({"w": jnp.array(weights)})
    assert weights_digest({"w": weights}) != weights_digest({"w": other})


@pytest.mark.parametrize("change", [lambda w: -w, lambda w: 2 * w, lambda w: w.at[0, 0, :2].multiply(-1)])
def test_changes_of_sign_and_scale_change_the_digest(change: Callable[[jax.Array], jax.Array]) -> None:
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((24, 64, 32)), jnp.float32)
    assert weights_digest({"w": weights}) != weights_digest({"w": change(weights)})


def test_moved_renamed_or_reshaped_weights_have_another_digest() -> None:
    weights = jnp.arange(24.0).reshape(2, 3, 4)
    changed = [weights[::-1], weights[:, ::-1], weights.swapaxes(1, 2), weights.reshape(3, 2, 4)]
    digests = {weights_digest({"w": w}) for w in [weights, *changed]} | {weights_digest({"v": weights})}
    assert len(digests) == 6


def test_the_digest_does_not_depend_on_the_mesh() -> None:
    weights = jnp.arange(64.0).reshape(8, 8)
    mesh = sharding.make_mesh(config.MeshConfig(fsdp=4, tensor=2), jax.devices()[:8])
    spread = jax.device_put(weights, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp", "tensor")))
    assert weights_digest([spread]) == weights_digest([weights])


def test_the_key_names_what_changed(context: RunContext, pets: Path, tmp_path: Path) -> None:
    def key(database: Path = pets, question: str = "?", **groups: Any) -> dict[str, str]:
        heldout = HeldoutSet("heldout", [Example("0", "pets", database, question, "SELECT 1")], [_prompt()])
        changed = dataclasses.replace(context, config=dataclasses.replace(context.config, **groups))
        return content_key(changed, {"w": jnp.ones(2)}, [heldout])

    def changed(other: dict[str, str]) -> list[str]:
        return [name for name, digest in key().items() if other[name] != digest]

    copy = tmp_path / "copy.sqlite"
    shutil.copy(pets, copy)
    assert changed(key(copy)) == []
    copy.write_bytes(pets.read_bytes() + b"x")
    assert changed(key(copy)) == ["databases"]
    assert changed(key(question="How many?")) == ["questions"]
    evaluate, execute, data = context.config.evaluate, context.config.execute, context.config.data
    assert changed(key(evaluate=dataclasses.replace(evaluate, votes=3))) == ["settings"]
    assert changed(key(data=dataclasses.replace(data, form="direct"))) == ["settings"]
    assert changed(key(evaluate=dataclasses.replace(evaluate, every=3))) == []
    assert changed(key(execute=dataclasses.replace(execute, workers=7, gold_cache_dir="/x"))) == []


def test_a_missing_database_is_an_error(context: RunContext, tmp_path: Path) -> None:
    heldout = HeldoutSet("heldout", [Example("0", "none", tmp_path / "none.sqlite", "?", "SELECT 1")], [])
    with pytest.raises(Exception, match=r"none\.sqlite"):
        content_key(context, None, [dataclasses.replace(heldout, prompts=[_prompt()])])


def _prompt() -> Prompt:
    return Prompt("0", "", np.arange(3, dtype=np.int32), 0, "fixed", False, over_budget=False)
