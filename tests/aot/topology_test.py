from __future__ import annotations

import importlib.util

import jax
import pytest

from sqlr1_jax.aot import topology
from sqlr1_jax.aot.topology import GIB, Topology
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import flops

HAS_COMPILER = importlib.util.find_spec("libtpu") is not None
requires_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="needs libtpu: pip install -e '.[tpu]'")


@pytest.mark.parametrize("name", ["h100:8", "v5e", "", "v5e:3x3"])
def test_an_unknown_topology_is_an_error(name: str) -> None:
    if name.startswith("v5e") and not HAS_COMPILER:
        pytest.skip("libtpu checks the shapes of v5e")
    with pytest.raises(ConfigError, match=f"--topology={name}: "):
        topology.describe(name)


def test_a_missing_libtpu_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[tpu\]'"):
        topology.describe("v5e:2x2")


def test_seconds_are_of_all_chips_at_their_peak() -> None:
    two_chips = Topology("cpu:2", jax.devices()[:2], hosts=1, hbm=GIB)
    assert two_chips.seconds(6 * flops.peak_flops(jax.devices()[0])) == pytest.approx(3.0)


@requires_compiler
@pytest.mark.parametrize(
    ("name", "chips", "hosts"), [("v5e:4x4", 16, 4), ("v5p:2x2x4", 16, 4), ("v6e:2x4", 8, 1), ("v5e:2x4", 8, 1)]
)
def test_a_topology_has_the_chips_and_hosts_of_its_name(name: str, chips: int, hosts: int) -> None:
    described = topology.describe(name)
    assert (len(described.devices), described.hosts) == (chips, hosts)
