"""Figures of compiled programs: by hand on small texts, and of programs that XLA compiles here."""

import jax
import jax.numpy as jnp
import pytest

from jdiff.plan.statistics import statistics

TEXT = """HloModule m

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (input: bf16[64,32]) -> bf16[16,32] {
  %input = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %ar = bf16[64,32]{1,0:T(8,128)(2,1)} all-reduce(%input), replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%sum
  ROOT %own = bf16[16,32]{1,0:T(8,128)(2,1)} slice(%ar), slice={[0:16], [0:32]}
}

%body (p: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
  %p = (s32[]{:T(128)}, bf16[64,32]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[64,32]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %w = bf16[32,32]{1,0} constant({...})
  %y = bf16[64,32]{1,0} convolution(%x, %w), dim_labels=bf_io->bf, backend_config={"estimated_cycles":"100"}
  %mine = bf16[16,32]{1,0} fusion(%y), calls=%all-reduce-scatter.1, backend_config={"estimated_cycles":"7"}
  %all = bf16[64,32]{1,0} all-gather(%mine), replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) \
{'axis_1'}, dimensions={0}
  ROOT %t = (s32[], bf16[64,32]) tuple(%i, %all)
}

%condition (q: (s32[], bf16[64,32])) -> pred[] {
  %q = (s32[]{:T(128)}, bf16[64,32]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %n = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%j, %n), direction=LT
}

ENTRY %main (x: bf16[64,32]) -> (s32[], bf16[64,32]) {
  %x.1 = bf16[64,32]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[64,32]) tuple(%zero, /*index=1*/%x.1)
  ROOT %loop = (s32[], /*index=1*/bf16[64,32]{1,0}) while(%start), condition=%condition, body=%body
}
"""


def test_a_loop_counts_as_often_as_it_runs():
    figures = statistics(TEXT)
    assert figures.flops == 5 * 2 * 64 * 32 * 32
    assert figures.cycles == figures.product_cycles == 5 * 100  # the collective's own estimate is none of computing
    # In a ring of 4: 3/4 of the 4096 bytes that are summed and split, three times the 1024 that are gathered.
    assert figures.sent() == {"all-gather": 5 * 3 * 1024, "reduce-scatter": 5 * 3 * 1024}
    assert {one.kind: one.group for one in figures.collectives} == {
        "reduce-scatter": (0, 2, 4, 6),
        "all-gather": (0, 2, 4, 6),
    }


def test_a_turn_that_was_moved_out_of_the_loop_is_not_counted_in_it():
    assert (
        statistics(TEXT.replace("%zero = s32[] constant(0)", "%zero = s32[] constant(1)")).flops == 4 * 2 * 64 * 32 * 32
    )


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="loop loop: its condition does not show how often it runs"):
        statistics(TEXT.replace("%n = s32[]{:T(128)} constant(5)", "%n = s32[] get-tuple-element(%q), index=0"))


BESIDE = """HloModule m

%starts (a: bf16[16,32]) -> (bf16[16,32], bf16[64,32]) {
  %a = bf16[16,32] parameter(0)
  %first = bf16[64,32] all-gather(%a), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={0}, \
frontend_attributes={chain_id="13"}
  ROOT %begun = (bf16[16,32], bf16[64,32]) custom-call(%first), custom_call_target="AsyncCollectiveStart"
}

%inner (b: bf16[8,32]) -> bf16[8,32] {
  %b = bf16[8,32] parameter(0)
  %w = bf16[32,32] constant({...})
  ROOT %product = bf16[8,32] dot(%b, %w), lhs_contracting_dims={1}
}

%async_collective_fusion.7 (c: bf16[16,32], d: bf16[8,32]) -> (bf16[8,32], bf16[64,32]) {
  %c = bf16[16,32] parameter(0)
  %d = bf16[8,32] parameter(1)
  %within = bf16[8,32] fusion(%d), kind=kOutput, calls=%inner
  %second = bf16[64,32] all-gather(%c), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={0}, \
frontend_attributes={chain_id="13"}
  ROOT %both = (bf16[8,32], bf16[64,32]) tuple(%within, %second)
}

%ends (e: bf16[16,32]) -> bf16[64,32] {
  %e = bf16[16,32] parameter(0)
  %third = bf16[64,32] all-gather(%e), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={0}, \
frontend_attributes={chain_id="13"}
  ROOT %over = bf16[64,32] custom-call(%third), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: bf16[16,32], y: bf16[8,32]) -> bf16[64,32] {
  %x = bf16[16,32] parameter(0)
  %y = bf16[8,32] parameter(1)
  %s = (bf16[16,32], bf16[64,32]) fusion(%x), calls=%starts, backend_config={"estimated_cycles":"9"}
  %m = (bf16[8,32], bf16[64,32]) fusion(%x, %y), calls=%async_collective_fusion.7, \
backend_config={"estimated_cycles":"50"}
  %k = bf16[8,32] custom-call(%y), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":\
{"body":"", "cost_estimate":{"flops":"1000","transcendentals":"3","bytes_accessed":"640"}}}
  %silent = bf16[8,32] custom-call(%y), custom_call_target="tpu_custom_call"
  ROOT %z = bf16[64,32] fusion(%x), calls=%ends, backend_config={"estimated_cycles":"5"}
}
"""


def test_a_collective_that_computing_is_laid_beside_is_one_and_the_computing_counts():
    figures = statistics(BESIDE)
    assert figures.sent() == {"all-gather": 3 * 1024}
    assert [one.beside for one in figures.collectives] == [50]
    assert figures.product_cycles == figures.cycles == 50


def test_a_kernel_counts_with_what_it_says_and_is_listed_where_it_says_nothing():
    figures = statistics(BESIDE)
    assert (figures.kernel_flops, figures.kernel_moved) == (1000, 640)
    assert figures.flops == 2 * 8 * 32 * 32 + 1000 and figures.opaque == {"tpu_custom_call": 1}


CUDNN = """HloModule m

ENTRY %main (q: bf16[2,5,3,8], k: bf16[2,7,3,8], x: bf16[2,6,6,4], y: bf16[2,3,3,16]) -> bf16[2,3,5,8] {
  %q = bf16[2,5,3,8] parameter(0)
  %k = bf16[2,7,3,8] parameter(1)
  %x = bf16[2,6,6,4] parameter(2)
  %y = bf16[2,3,3,16] parameter(3)
  %w = (bf16[16,2,2,4], u8[0]) custom-call(%x, %y), window={size=2x2 stride=2x2}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardFilter"
  %kernel = bf16[16,2,2,4] get-tuple-element(%w), index=0
  %c = (bf16[2,3,3,16], u8[0]) custom-call(%x, %kernel), window={size=2x2 stride=2x2}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convForward"
  %i = (bf16[2,6,6,4], u8[0]) custom-call(%y, %kernel), window={size=2x2 stride=2x2}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardInput"
  %f = (bf16[2,3,5,8], f32[2,3,5], u8[0]) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax", \
backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": \
["2", "3", "5", "7"], "tuple_shapes": []}}}
  %b = (bf16[2,3,5,8], bf16[2,3,7,8], bf16[2,3,7,8], u8[0]) custom-call(%q, %k, %k), \
custom_call_target="__cudnn$fmhaSoftmaxBackward", \
backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"dimensions": ["2","3","5","7"]}}}
  %s = bf16[2,5,3,8] all-reduce(%q), replica_groups={{0,1},{2,3}}, to_apply=%sum
  %t = bf16[2,5,3,8] all-reduce(%q), replica_groups={{0,2},{1,3}}, to_apply=%sum
  %u = (bf16[2]) custom-call(%q), custom_call_target="__cudnn$norm"
  ROOT %o = bf16[2,3,5,8] get-tuple-element(%f), index=0
}
"""


def test_kernels_of_cudnn_count_as_what_they_compute():
    """Of every convolution 2 x 3 x 3 places, 2 x 2 taps, 4 channels and 16; of attention products of [5, 8] and
    [7, 8] for 2 x 3 heads."""
    figures, attention = statistics(CUDNN), 2 * (2 * 3) * 5 * 7 * 8
    assert figures.kernel_flops == (2 + 5) * attention
    assert figures.flops == figures.kernel_flops + 3 * 2 * (2 * 3 * 3) * (2 * 2) * 4 * 16
    forward = 2 * 2 * 3 * 8 * (5 + 5 + 7 + 7) + 4 * 2 * 3 * 5
    assert figures.kernel_moved == forward + 2 * 2 * 3 * 8 * (2 * (5 + 7 + 7))
    assert figures.opaque == {"__cudnn$norm": 1}


def test_what_passes_hosts_is_what_groups_that_lie_in_several_send():
    size = 2 * 2 * 5 * 3 * 8
    figures = statistics(CUDNN)
    assert figures.sent() == {"all-reduce": 2 * size} and figures.between(2) == size and figures.between(4) == 0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_products_are_counted_as_xla_counts_them(stride, padding):
    def gradients(x, kernel, a, b):
        conv = lambda x, kernel: jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        loss = lambda x, kernel, a, b: conv(x, kernel).sum() + jnp.einsum("bij,bjk->bik", a, b).sum()
        return jax.grad(loss, argnums=(0, 1, 2, 3))(x * x, kernel, a, b)

    shapes = [(2, 9, 8, 32), (3, 3, 32, 48), (4, 25, 26), (4, 26, 27)]
    program = jax.jit(gradients).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()
    # XLA counts additions and multiplications by element as well: they are few here.
    assert statistics(program.as_text()).flops == pytest.approx(program.cost_analysis()["flops"], rel=0.02)


def test_a_scan_that_xla_compiles_is_counted_whole():
    def products(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=7)[0]

    x, w = jax.ShapeDtypeStruct((8, 64), jnp.float32), jax.ShapeDtypeStruct((64, 64), jnp.float32)
    program = jax.jit(products).lower(x, w).compile()
    assert statistics(program.as_text()).flops == 7 * 2 * 8 * 64 * 64


@pytest.mark.parametrize(
    "optimized", ["convolution(%x, %w), dim_labels=bf_io->bf", "dot(%x, %w), lhs_contracting_dims={1}"]
)
def test_both_ways_of_writing_a_product(optimized):
    text = TEXT.replace("convolution(%x, %w), dim_labels=bf_io->bf", optimized)
    assert statistics(text).flops == 5 * 2 * 64 * 32 * 32
