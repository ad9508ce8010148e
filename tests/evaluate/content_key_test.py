from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

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


@given(st.integers(0, 23), st.sampled_from(["float32", "bfloat16"]))
def test_any_change_of_one_number_changes_the_digest(position: int, dtype: str) -> None:
    weights = jnp.arange(24, dtype=dtype).reshape(2, 3, 4)
    index = np.unravel_index(position, weights.shape)
    other = weights.at[index].set(weights[index] + 1)
    assert weights_digest({"w": weights}) == weights_digest({"w": jnp.array(weights)})
    assert weights_digest({"w": weights}) != weights_digest({"w": other})


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


def test_the_key_names_what_changed(pets: Path, tmp_path: Path) -> None:
    def key(database: Path = pets, question: str = "?", settings: config.Config | None = None) -> dict[str, str]:
        prompt = Prompt("0", question, np.arange(3, dtype=np.int32), 0, "fixed", False, over_budget=False)
        heldout = HeldoutSet("heldout", [Example("0", "pets", database, question, "SELECT 1")], [prompt])
        return content_key(settings or config.Config(), {"w": jnp.ones(2)}, [heldout])

    def changed(other: dict[str, str]) -> list[str]:
        return [name for name, digest in key().items() if other[name] != digest]

    copy = tmp_path / "copy.sqlite"
    shutil.copy(pets, copy)
    assert changed(key(copy)) == []
    copy.write_bytes(pets.read_bytes() + b"x")
    assert changed(key(copy)) == ["databases"]
    assert changed(key(question="How many?")) == ["questions"]
    votes = dataclasses.replace(config.Config(), evaluate=config.EvaluateConfig(votes=3))
    assert changed(key(settings=votes)) == ["settings"]
    only_training = dataclasses.replace(config.Config(), evaluate=config.EvaluateConfig(every=3))
    assert changed(key(settings=only_training)) == []


def test_a_missing_database_is_an_error(tmp_path: Path) -> None:
    heldout = HeldoutSet("heldout", [Example("0", "none", tmp_path / "none.sqlite", "?", "SELECT 1")], [])
    with pytest.raises(Exception, match=r"none\.sqlite"):
        content_key(config.Config(), None, [dataclasses.replace(heldout, prompts=[_prompt()])])


def _prompt() -> Prompt:
    return Prompt("0", "", np.arange(3, dtype=np.int32), 0, "fixed", False, over_budget=False)
