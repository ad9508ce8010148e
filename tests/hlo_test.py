"""Bytes between chips and in memory: of programs written out by hand, and of ones that XLA compiled."""

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


# A loop of three turns that reads a layer of a stack, a row of VMEM, and writes a row of what it carries.
STACK = """HloModule jit_g, is_scheduled=true

%cut (a: f32[3,8,4], i: s32[]) -> f32[8,4] {
  %a = f32[3,8,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %slice = f32[1,8,4]{2,1,0} dynamic-slice(%a, %i), dynamic_slice_sizes={1,8,4}
  ROOT %flat = f32[8,4]{1,0} bitcast(%slice)
}

%around (c: f32[3,8,4], k: s32[]) -> f32[8,4] {
  %c = f32[3,8,4]{2,1,0} parameter(0)
  %k = s32[] parameter(1)
  ROOT %inner = f32[8,4]{1,0} fusion(%c, %k), kind=kLoop, calls=%cut
}

%put (b: f32[100,4], u: f32[8,4], j: s32[]) -> f32[100,4] {
  %b = f32[100,4]{1,0} parameter(0)
  %u = f32[8,4]{1,0} parameter(1)
  %j = s32[] parameter(2)
  %row = f32[2,4]{1,0} slice(%u), slice={[0:2], [0:4]}
  %written = f32[100,4]{1,0} dynamic-update-slice(%b, %row, %j)
  ROOT %both = (f32[100,4]{1,0}) tuple(%written)
}

%body (p: (s32[], f32[3,8,4], f32[100,4])) -> (s32[], f32[3,8,4], f32[100,4]) {
  %p = (s32[], f32[3,8,4]{2,1,0}, f32[100,4]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%p), index=0
  %stack = f32[3,8,4]{2,1,0} get-tuple-element(%p), index=1
  %held = f32[100,4]{1,0} get-tuple-element(%p), index=2
  %layer = f32[8,4]{1,0:T(8,128)S(1)} fusion(%stack, %n), kind=kOutput, calls=%around
  %out = f32[100,4]{1,0} fusion(%held, %layer, %n), kind=kLoop, calls=%put
  ROOT %t = (s32[], f32[3,8,4], f32[100,4]) tuple(%n, %stack, %out)
}

%condition (q: (s32[], f32[3,8,4], f32[100,4])) -> pred[] {
  %q = (s32[], f32[3,8,4], f32[100,4]) parameter(0)
  %m = s32[] get-tuple-element(%q), index=0
  %most = s32[] constant(3)
  ROOT %less = pred[] compare(%m, %most), direction=LT
}

ENTRY %main (x: (s32[], f32[3,8,4], f32[100,4])) -> (s32[], f32[3,8,4], f32[100,4]) {
  %x = (s32[], f32[3,8,4], f32[100,4]) parameter(0)
  ROOT %w = (s32[], f32[3,8,4], f32[100,4]) while(%x), condition=%condition, body=%body
}
"""


def test_a_loop_reads_slices_and_writes_in_place() -> None:
    """Of the stack one layer a turn, which goes to VMEM; of what it writes two rows; each index once a fusion."""
    layer, index, rows = 8 * 4 * 4, 4, 2 * 4 * 4
    assert hlo.memory_bytes(STACK) == 3 * (layer + index + rows + index)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%r = bf16[8,4]{1,0} add(%x, %x)", 3 * 64),
        ("%r = bf16[8,4]{1,0:T(8,128)S(1)} add(%x, %x)", 2 * 64),  # its result stays in VMEM
        ("%r = bf16[2,4]{1,0} dynamic-slice(%x, %x), dynamic_slice_sizes={2,4}", 2 * 16),
        ("%r = (bf16[8,4]{1,0:S(1)}, bf16[8,4]{1,0}, u32[]{:S(2)}) copy-start(%x)", 64),
        ("%r = bf16[8,4]{1,0} copy-done(%x)", 0),
        ("%r = (bf16[8,4]{1,0}) tuple(%x)", 0),
        ("%r = bf16[32] bitcast(%x)", 0),
        ('%r = bf16[64,4] custom-call(), custom_call_target="AllocateBuffer"', 0),
        ("%r = bf16[8,4] all-reduce-start(%x), channel_id=1, to_apply=%add", 2 * 64),
        ('%r = bf16[16,4]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"', 64 + 128),
    ],
)
def test_what_an_instruction_moves_through_memory(line: str, expected: int) -> None:
    assert hlo.memory_bytes(_entry(line)) == expected


def test_a_fusion_that_only_turns_its_operand_reads_all_of_it() -> None:
    inside = """
%bend (d: bf16[8,4]) -> bf16[4,8] {
  %d = bf16[8,4]{1,0} parameter(0)
  ROOT %bent = bf16[4,8]{1,0} bitcast(%d)
}

%around (c: bf16[8,4]) -> f32[2] {
  %c = bf16[8,4]{1,0} parameter(0)
  %turned = bf16[4,8]{1,0} fusion(%c), kind=kLoop, calls=%bend
  ROOT %sum = f32[2]{0} convolution(%turned, %turned)
}
"""
    assert hlo.memory_bytes(_entry("%r = f32[2]{0} fusion(%x), kind=kOutput, calls=%around", more=inside)) == 64 + 8


def test_without_loops_memory_is_what_xla_counts_and_a_loop_counts_its_turns() -> None:
    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((32, 64), (7, 64, 64)))

    def stacked(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    product = jax.jit(jnp.dot).lower(x, jax.ShapeDtypeStruct((64, 128), jnp.float32)).compile()
    assert hlo.memory_bytes(product.as_text()) == product.cost_analysis()["bytes accessed"]
    layer, hidden = 4 * 64 * 64, 4 * 32 * 64
    found = hlo.memory_bytes(jax.jit(stacked).lower(w, x).compile().as_text())
    assert 7 * (layer + 2 * hidden) <= found < 7 * 7 * layer  # less than the whole stack in each turn
