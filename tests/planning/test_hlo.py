"""Forms in which HLO writes loops and groups, one by one."""

import numpy as np
import pytest

from posttrain_jax.planning import hlo
from posttrain_jax.planning.chips import read_slice
from posttrain_jax.planning.collectives import Layout, axes_of, collective, read_groups
from posttrain_jax.planning.flops import product_flops
from posttrain_jax.planning.schedule import Walk
from posttrain_jax.planning.traffic import traffic

LOOP = """HloModule m, is_scheduled=true

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p = (s32[]{{:T(128)}}, f32[8]{{0:T(128)S(1)}}) parameter(0)
  ROOT %t = (s32[]{{:T(128)}}, f32[8]{{0:T(128)S(1)}}) tuple(%p, %p)
}}

%inside (a: s32[], b: s32[]) -> pred[] {{
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %less = pred[] compare(%a, %b), direction=LT
}}

%condition (q: (s32[], f32[8])) -> pred[] {{
  %q = (s32[], f32[8]) parameter(0)
  %limit = s32[] constant({limit})
  %counter = s32[] get-tuple-element(%q), index=0
  %bound = s32[] get-tuple-element(%q), index=1
  ROOT %test = pred[] {test}
}}

ENTRY %main (x: f32[8]) -> (s32[], f32[8]) {{
  %x = f32[8]{{0:T(128)}} parameter(0)
  %zero = s32[] constant({first})
  %start = (s32[], f32[8]) tuple(%zero, %x)
  ROOT %while.1 = (s32[], f32[8]) while(%start), condition=%condition, body=%body{told}
}}
"""
PLAIN = "compare(%counter, %limit), direction=LT"


@pytest.mark.parametrize(
    "form, turns",
    [
        ({}, 7),
        ({"first": 3}, 4),
        ({"test": "compare(%limit, %counter), direction=GT"}, 7),
        ({"test": "fusion(%counter, %limit), kind=kLoop, calls=%inside"}, 7),
        ({"test": "compare(%counter, %bound), direction=LT"}, None),
        ({"told": ', backend_config={"known_trip_count":{"n":"9"}}'}, 9),
    ],
)
def test_turns_of_a_loop(form, turns):
    module = hlo.read(LOOP.format(**{"limit": 7, "first": 0, "told": "", "test": PLAIN, **form}))
    assert hlo.trip_count(module, module.entry, module.entry.root) == turns


def test_what_lies_in_vmem_is_not_in_hbm():
    kept, read = hlo.arrays("(bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, f32[2]{0:T(128)})")
    assert (kept.bytes, kept.in_hbm, read.bytes, read.in_hbm) == (64, False, 8, True)


def test_no_program_is_told():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.read("nothing")


MESH = {"data": 2, "fsdp": 4}
PLACES = np.stack(np.unravel_index(np.arange(8), (2, 4)), axis=1)
LAYOUT = Layout(MESH, read_slice("v5e:2x4"), PLACES)


def exchange(opcode, shape, groups):
    text = f"ENTRY %m (x: f32[8]) -> f32[8] {{\n  ROOT %c = {shape} {opcode}(%x), {groups}, dimensions={{0}}\n}}"
    return hlo.read(text).entry.root


@pytest.mark.parametrize(
    "groups, axes",
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", ("fsdp",)),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("replica_groups=[2,4]<=[8]", ("fsdp",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
        ("replica_groups=[1,8]<=[8]", ("data", "fsdp")),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ("fsdp",)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data",)),
        ("replica_groups={}", ("data", "fsdp")),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", ("fsdp",)),
    ],
)
def test_groups_are_told_by_mesh_axes(groups, axes):
    opcode = "collective-permute" if "pairs" in groups else "all-gather"
    assert axes_of(read_groups(exchange(opcode, "f32[8]{0}", groups), LAYOUT), MESH) == axes


@pytest.mark.parametrize(
    "opcode, kind, sent",
    [
        ("all-gather", "all-gather", 3 / 4 * 4000),
        ("all-reduce", "all-reduce", 2 * 3 / 4 * 4000),
        ("reduce-scatter", "reduce-scatter", 3 * 4000),  # what is written is a quarter of what was there
        ("all-to-all", "all-to-all", 3 / 4 * 4000),
        ("ragged-all-to-all", "ragged-all-to-all", 3 / 4 * 4000),
    ],
)
def test_bytes_that_a_device_sends(opcode, kind, sent):
    found = collective(exchange(opcode, "f32[1000]{0}", "replica_groups=[2,4]<=[8]"), LAYOUT)
    assert (found.kind, found.axes, found.bytes) == (kind, ("fsdp",), sent)
    # four chips on a line of v5e: one link of 50 GB/s, and three hops
    line = sent / 50e9 if "all-to-all" not in opcode else 4000 * 4 / 4 / 50e9
    assert found.seconds == pytest.approx(line + 3e-6)


def test_devices_alone_send_nothing():
    found = collective(exchange("all-reduce", "f32[8]{0}", "replica_groups=[8,1]<=[8]"), LAYOUT)
    assert (found.axes, found.bytes, found.seconds) == ((), 0, 0)


FUSION = """%inner (a: f32[9,64], i: s32[1], u: f32[1,64]) -> f32[9,64] {{
  %a = f32[9,64]{{1,0}} parameter(0)
  %i = s32[1]{{0:T(128)S(1)}} parameter(1)
  %u = f32[1,64]{{1,0:T(8,128)S(1)}} parameter(2)
  ROOT %r = {inside}
}}

ENTRY %m (a: f32[9,64], i: s32[1], u: f32[1,64]) -> f32[9,64] {{
  %a.1 = f32[9,64]{{1,0}} parameter(0)
  %i.1 = s32[1]{{0:T(128)S(1)}} parameter(1)
  %u.1 = f32[1,64]{{1,0:T(8,128)S(1)}} parameter(2)
  ROOT %f = {result} fusion(%a.1, %i.1, %u.1), kind=kLoop, calls=%inner
}}"""


@pytest.mark.parametrize(
    "inside, result, moved",
    [
        ("f32[9,64]{1,0} add(%a, %a)", "f32[9,64]{1,0}", 2 * 9 * 64 * 4),
        ("f32[9,64]{1,0} add(%a, %a)", "f32[9,64]{1,0:T(8,128)S(1)}", 9 * 64 * 4),  # the result stays in VMEM
        ("f32[1,64]{1,0} dynamic-slice(%a, %i)", "f32[1,64]{1,0}", 2 * 64 * 4),
        ("f32[9,64]{1,0} dynamic-update-slice(%a, %u, %i)", "f32[9,64]{1,0}", 2 * 64 * 4),
        ("f32[9,64]{1,0} scatter(%a, %i, %u), to_apply=%add", "f32[9,64]{1,0}", 2 * 64 * 4),
    ],
)
def test_traffic_is_of_what_is_touched(inside, result, moved):
    module = hlo.read(FUSION.format(inside=inside, result=result))
    assert traffic(module, module.entry, module.entry.root) == moved


def product(line, left, right):
    text = (
        "ENTRY %m (a: f32[1], b: f32[1]) -> f32[1] {\n"
        f"  %a = {left} parameter(0)\n  %b = {right} parameter(1)\n  ROOT %c = {line}\n}}"
    )
    module = hlo.read(text)
    return product_flops(module, module.entry, module.entry.root)


def test_a_batched_product_counts_each_batch_once():
    """As the TPU compiler writes it: the batch is a window that jumps, so most of its positions meet holes."""
    line = "f32[6,5,7]{2,1,0} convolution(%a, %b), window={size=6 stride=5 lhs_dilate=6}, dim_labels=0bf_0io->0bf"
    assert product(line, "f32[6,5,3]{2,1,0}", "f32[6,3,7]{2,1,0}") == 2 * 6 * 5 * 3 * 7


def test_a_plain_product():
    line = "f32[5,7]{1,0} convolution(%a, %b), dim_labels=bf_io->bf"
    assert product(line, "f32[5,3]{1,0}", "f32[3,7]{1,0}") == 2 * 5 * 3 * 7
    line = (
        '(f32[5,7]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config='
        '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}'
    )
    assert product(line, "f32[5,3]{1,0}", "f32[3,7]{1,0}") == 2 * 5 * 3 * 7
    line = "f32[5,7]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    assert product(line, "f32[5,3]{1,0}", "f32[3,7]{1,0}") == 2 * 5 * 3 * 7


def test_an_instruction_whose_configuration_goes_over_several_lines_is_one():
    text = """HloModule m

%inside (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %kernel = f32[2]{0} custom-call(%p), custom_call_target="tpu_custom_call", backend_config={"cost_estimate": {
"bytes_accessed":16,
"flops":64
}, "serialization_format": 1}
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  ROOT %done = f32[2]{0} fusion(%x), kind=kCustom, calls=%inside
}
"""
    module = hlo.read(text)
    kernel = module.computations["inside"].root
    assert kernel.name == "kernel" and '"flops":64' in kernel.attributes
    assert [one.name for one in module.entry.instructions] == ["x", "done"]


BESIDE = """HloModule m, is_scheduled=true

%called (a: f32[8,128], b: token[]) -> f32[32,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %b = token[] parameter(1)
  ROOT %gather = f32[32,128]{1,0:T(8,128)} all-gather(%a), replica_groups={{0,1,2,3}}, dimensions={0}
}, execution_thread="sparsecore"

ENTRY %main (x: f32[8,128]) -> f32[32,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %after = token[] after-all()
  %send = (f32[8,128]{1,0:T(8,128)}, u32[], token[]) send(%x, %after), channel_id=2, is_host_transfer=true, METpl="ALL"}
  %recv = (f32[8,128]{1,0:T(8,128)}, u32[], token[]) recv(%after), channel_id=1, is_host_transfer=true, METpl="ALL"}
  %begun = ((f32[8,128], token[]), f32[32,128]{1,0:T(8,128)}) call-start(%x, %after), to_apply=%called
  %got = (f32[8,128]{1,0:T(8,128)}, token[]) recv-done(%recv), channel_id=1
  %sent = token[] send-done(%send), channel_id=2
  ROOT %whole = f32[32,128]{1,0:T(8,128)} call-done(%begun)
}
""".replace(
    "METpl=",
    'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="r",'
    '_xla_megascale_transfer_type="ALL_REDUCE",_x=',
)


def test_exchanges_by_other_cores_and_between_slices_run_beside_each_other():
    """Two slices of four chips: an all-gather by the sparse core, and an all-reduce over the data centre's network."""
    part = read_slice("v5p:2x2x1@2")
    places = np.array([(x, y, 0) for _ in range(2) for x in range(2) for y in range(2)])
    totals = Walk(hlo.read(BESIDE), Layout({"data": 2, "fsdp": 4}, part, places)).whole()
    found = {key: numbers[:2] for key, numbers in totals.collectives.items()}
    size = 8 * 128 * 4
    assert found == {("all-gather", ("fsdp",)): [1, 3 * size], ("all-reduce between slices", ("data",)): [1, size]}
    between, gather = size / 6.25e9, totals.collectives["all-gather", ("fsdp",)][2]
    assert totals.seconds == pytest.approx(max(between, gather)) and totals.waiting == pytest.approx(totals.seconds)
