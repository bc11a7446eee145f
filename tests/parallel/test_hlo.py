"""Collectives in the text of compiled programs."""

import textwrap

import pytest

from dollar_jax.parallel.hlo import collectives, total

# As XLA writes for TPUs: loops without trips, gathers begun in fusions of their
# own, reduce-scatters as sums of which a slice is kept.
TPU = """
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%start (own: bf16[2,64]) -> (bf16[2,64], bf16[32,64], u32[]) {
  %own = bf16[2,64]{1,0} parameter(0)
  %gather = bf16[32,64]{1,0:T(8,128)(2,1)} all-gather(%own), channel_id=7, replica_groups=mesh['axis_0'=16,'axis_1'=4] {'axis_0'}, dimensions={0}, metadata={op_name="jit(step)/block/to_q"}
  ROOT %begin = (bf16[2,64]{1,0}, bf16[32,64]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) custom-call(%gather), custom_call_target="AsyncCollectiveStart"
}

%same (own.1: bf16[2,64]) -> bf16[32,64] {
  %own.1 = bf16[2,64]{1,0} parameter(0)
  ROOT %gather.1 = bf16[32,64]{1,0} all-gather(%own.1), channel_id=7, replica_groups=mesh['axis_0'=16,'axis_1'=4] {'axis_0'}, dimensions={0}, metadata={op_name="jit(step)/block/to_q"}
}

%all-reduce-scatter.3 (whole: f32[32,8]) -> f32[2,8] {
  %whole = f32[32,8]{1,0} parameter(0)
  %reduced = f32[32,8]{1,0} all-reduce(%whole), channel_id=9, replica_groups=[4,16]<=[64], to_apply=%add
  ROOT %kept = f32[2,8]{1,0} dynamic-slice(%reduced, %i, %zero), dynamic_slice_sizes={2,8}
}

%body (carry: (s32[], bf16[2,64])) -> (s32[], bf16[2,64]) {
  %carry = (s32[], bf16[2,64]) parameter(0)
  %begun = (bf16[2,64]{1,0}, bf16[32,64]{1,0}, u32[]) fusion(%part), kind=kCustom, calls=%start
  %done = bf16[32,64]{1,0} fusion(%part), kind=kCustom, calls=%same
  %scattered = f32[2,8]{1,0} fusion(%grads), kind=kCustom, calls=%all-reduce-scatter.3
  %exchange = bf16[1,16,4,64]{3,2,1,0} all-to-all(%tokens), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={1}
  %exchange.1 = bf16[1,16,4,64]{3,2,1,0} all-to-all(%more), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={1}
  ROOT %next = (s32[], bf16[2,64]) tuple(%i, %part)
}

%condition (carry.1: (s32[], bf16[2,64])) -> pred[] {
  %carry.1 = (s32[], bf16[2,64]) parameter(0)
  %trips = s32[]{:T(128)} constant(30)
  %i.1 = s32[] get-tuple-element(%carry.1), index=0
  ROOT %less = pred[] compare(%i.1, %trips), direction=LT
}

%filled (share: f32[8]) -> f32[32] {
  %share = f32[8] parameter(0)
  %zeros = f32[32] broadcast(%nought), dimensions={}
  ROOT %put = f32[32] dynamic-update-slice(%zeros, %share, %i)
}

ENTRY %main (arg: bf16[2,64]) -> bf16[2,64] {
  %arg = bf16[2,64]{1,0} parameter(0)
  %table = s32[2,2] constant({ { 0, 1 },
}
  %loop = (s32[], bf16[2,64]) while(%start_values), condition=%condition, body=%body
  %padded = f32[32]{0} fusion(%bias), kind=kLoop, calls=%filled
  %bits = f32[32]{0} bitcast(%padded)
  %gathered = f32[32]{0} all-reduce(%bits), channel_id=11, replica_groups={{0,1,2,3}}, to_apply=%add
  %norm = f32[] all-reduce(%squares), channel_id=12, replica_groups={{0,1,2,3}}, to_apply=%add
  %ring = f32[4,4]{1,0} collective-permute(%x), channel_id=13, source_target_pairs={{0,1},{1,0}}
  ROOT %out = bf16[2,64] get-tuple-element(%loop), index=1
}
"""  # noqa: E501

# As XLA writes for GPUs.
GPU = """
%body.2 (carry: (s32[], f32[8])) -> (s32[], f32[8]) {
  %part = bf16[4,8]{1,0} parameter(0)
  %gather-start = (bf16[4,8]{1,0}, bf16[32,8]{1,0}) all-gather-start(%part), channel_id=3, replica_groups=[8,8]<=[64], dimensions={0}
  %gather-done = bf16[32,8]{1,0} all-gather-done(%gather-start)
  %scatter = f32[4,8]{1,0} reduce-scatter(%gather-done), channel_id=4, replica_groups=[8,8]<=[64], dimensions={0}, to_apply=%add
  %sum-start = f32[4,8]{1,0} all-reduce-start(%scatter), channel_id=5, replica_groups=[8,8]<=[8,8]T(1,0), to_apply=%add
}

ENTRY %main.3 (arg: f32[8]) -> f32[8] {
  %loop.1 = (s32[], f32[8]) while(%values), condition=%when, body=%body.2, backend_config={"known_trip_count":{"n":"5"}}
  %both = f32[8] conditional(%which, %a, %b), branch_computations={%left, %right}
}

%left (a: f32[8]) -> f32[8] {
  ROOT %one = f32[8]{0} all-reduce(%a), channel_id=6, replica_groups={{0,1}}, to_apply=%add
}

%right (b: f32[8]) -> f32[8] {
  ROOT %b = f32[8]{0} parameter(0)
}
"""  # noqa: E501


def test_a_tpus_loops_fusions_and_channels():
  found = collectives(TPU)
  assert total(found) == {
    "all-gather": {"count": 30, "bytes": 30 * 32 * 64 * 2},
    "reduce-scatter": {"count": 30, "bytes": 30 * 32 * 8 * 4},
    "all-reduce": {"count": 2, "bytes": 32 * 4 + 4},
    "all-to-all": {"count": 60, "bytes": 60 * 16 * 4 * 64 * 2},
    "collective-permute": {"count": 1, "bytes": 4 * 4 * 4},
  }
  groups = {(one.kind, one.group) for one in found}
  assert ("all-gather", 16) in groups
  assert ("reduce-scatter", 16) in groups
  assert ("all-to-all", 4) in groups


def test_a_gather_that_became_a_sum_is_told_from_a_sum():
  sums = [one for one in collectives(TPU) if one.kind == "all-reduce"]
  assert {one.bytes: one.gather for one in sums} == {32 * 4: True, 4: False}


def test_a_gpus_starts_and_known_trips():
  assert total(collectives(GPU)) == {
    "all-gather": {"count": 5, "bytes": 5 * 32 * 8 * 2},
    "reduce-scatter": {"count": 5, "bytes": 5 * 8 * 4 * 8 * 4},
    "all-reduce": {"count": 6, "bytes": 5 * 4 * 8 * 4 + 8 * 4},
  }


def test_a_loop_whose_trips_cannot_be_told_is_refused():
  text = TPU.replace("constant(30)", "parameter(1)")
  with pytest.raises(ValueError, match="trips of loop loop cannot be told"):
    collectives(text)


def test_text_without_collectives():
  text = """
  ENTRY %main (x: f32[2]) -> f32[2] {
    ROOT %x = f32[2] parameter(0)
  }
  """
  assert collectives(textwrap.dedent(text)) == []
