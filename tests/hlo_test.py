"""Bytes between chips: of programs written out by hand, and of ones that XLA compiled for eight devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sqlr1_jax import hlo

# One all-gather in a loop of three turns, inside a loop whose turns only the run knows.
LOOPS = """HloModule jit_f, is_scheduled=true

%inner_body (p.1: (s32[], f32[64])) -> (s32[], f32[64]) {
  %p.1 = (s32[]{:T(128)}, f32[64]{0:T(128)}) parameter(0)
  %part = f32[16]{0:T(128)} fusion(%p.1), kind=kLoop, calls=%unrelated
  %all-gather.1 = f32[64]{0:T(128)S(1)} all-gather(%part), channel_id=1, metadata={op_name="a/all-to-all("}
  ROOT %t.1 = (s32[]{:T(128)}, f32[64]{0:T(128)}) tuple(%p.1, %all-gather.1)
}

%inner_condition (p.2: (s32[], f32[64])) -> pred[] {
  %p.2 = (s32[]{:T(128)}, f32[64]{0:T(128)}) parameter(0)
  %constant.3 = s32[]{:T(128)} constant(3)
  %i = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.3), direction=LT
}

%outer_body (p.4: (s32[], s32[], f32[64])) -> (s32[], s32[], f32[64]) {
  %p.4 = (s32[], s32[], /*index=2*/f32[64]{0}) parameter(0)
  ROOT %while.1 = (s32[], s32[], f32[64]) while(%p.4), condition=%inner_condition, body=%inner_body
}

%outer_condition (p.5: (s32[], s32[], f32[64])) -> pred[] {
  %p.5 = (s32[], s32[], f32[64]) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.5), index=0
  %n = s32[] get-tuple-element(%p.5), index=1
  ROOT %lt.2 = pred[] compare(%i.2, %n), direction=LT
}

ENTRY %main (x: f32[16]) -> f32[64] {
  %x = f32[16]{0:T(128)} parameter(0)
  ROOT %while.2 = (s32[], s32[], f32[64]) while(%x), condition=%outer_condition, body=%outer_body
}
"""


@pytest.mark.parametrize("turns", [1, 5])
def test_a_collective_counts_as_often_as_its_loops_turn(turns: int) -> None:
    assert hlo.collective_bytes(LOOPS, turns) == {"all-gather": 64 * 4 * 3 * turns}


def _entry(*lines: str, more: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"{more}\nENTRY %main.1_spmd (x: bf16[8]) -> bf16[8] {{\n  %x = bf16[8,4]{{1,0}} parameter(0)\n{body}\n}}\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%r = f32[10]{0} all-reduce(%x), to_apply=%add", {"all-reduce": 64}),  # of 64 bytes it makes 40
        ("%r = bf16[2,4]{1,0} reduce-scatter(%x), dimensions={0}, to_apply=%add", {"reduce-scatter": 64}),
        ("%r = (bf16[8,4]{1,0}, f32[3]) all-to-all(%x, %x)", {"all-to-all": 128}),
        (
            "%r = (bf16[8,4]{1,0:T(8,128)}, bf16[8,4]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x)",
            {"collective-permute": 72},
        ),
        ("%r = bf16[8,4]{1,0} collective-permute-done(%x)", {}),
        ("%r = (bf16[8,4], bf16[32,4]) all-gather-start(%x), channel_id=2", {"all-gather": 256}),
        ("%r = s4[100] all-gather(%y)", {"all-gather": 50}),
        ('%r = bf16[8,4] add(%x, %x), metadata={op_name="while/all-reduce(x)"}', {}),
    ],
)
def test_what_a_collective_moves(line: str, expected: dict[str, int]) -> None:
    assert hlo.collective_bytes(_entry(line)) == expected


def test_the_parts_of_an_asynchronous_collective_count_once() -> None:
    fused = """
%start (p: bf16[8]) -> bf16[32] {
  %g.1 = bf16[32]{0} all-gather(%p), channel_id=7
}
%done (p: bf16[8]) -> bf16[32] {
  %g.2 = bf16[32]{0} all-gather(%p), channel_id=7
}
"""
    calls = "%a = bf16[32] fusion(%x), calls=%start", "%b = bf16[32] fusion(%x), calls=%done"
    assert hlo.collective_bytes(_entry(*calls, more=fused)) == {"all-gather": 64}


def test_of_branches_the_dearest_counts() -> None:
    branches = """
%cheap (p: f32[8]) -> f32[8] {
  %g.1 = f32[8]{0} all-reduce(%p), channel_id=7, to_apply=%add
}
%dear (p: f32[8]) -> f32[8] {
  %g.2 = f32[100]{0} all-reduce(%p), channel_id=8, to_apply=%add
}
"""
    text = _entry("%c = f32[8] conditional(%x, %x), branch_computations={%cheap, %dear}", more=branches)
    assert hlo.collective_bytes(text) == {"all-reduce": 400}


@pytest.mark.parametrize("turns", [1, 6])
def test_what_xla_compiled(turns: int) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("x")), NamedSharding(mesh, PartitionSpec())

    def program(x: jax.Array, w_LDD: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w_DD: jax.Array) -> tuple[jax.Array, None]:
            gathered = jax.lax.with_sharding_constraint(w_DD, whole)
            return jnp.tanh(x @ gathered), None

        return jax.lax.scan(layer, x, w_LDD)[0]

    x = jax.ShapeDtypeStruct((32, 64), jnp.float32, sharding=split)
    by_rows = NamedSharding(mesh, PartitionSpec(None, "x"))
    w_LDD = jax.ShapeDtypeStruct((turns, 64, 64), jnp.float32, sharding=by_rows)
    text = jax.jit(program, out_shardings=split).lower(x, w_LDD).compile().as_text()
    assert hlo.collective_bytes(text) == {"all-gather": turns * 64 * 64 * 4}
