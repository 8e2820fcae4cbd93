"""A graph becomes kernel calls and segments on buffers that fit each other."""

import operator

import pytest
import torch

from slipway.compiler.layout import lay_out
from slipway.compiler.ops import op_name
from slipway.compiler.plan import plan_graph
from slipway.compiler.target import Target
from slipway.compiler.values import outputs_of, resolve, rows_of
from slipway.passes.pipeline import run_passes
from slipway.runtime.manifest import Limits

LIMITS = Limits(max_sequence_length=64, max_batch_tokens=16, max_sequences=4, max_logit_rows=8)


@pytest.fixture
def planned(tiny):
    return lambda family: plan_graph(run_passes(tiny(family).graph), Target("cpu", "avx2"))


def test_a_llama_is_kernels_alone(planned):
    plan = planned("llama")
    assert not plan.declined and all(step.kernel for step in plan.steps)
    assert {op_name(step.nodes[0]) for step in plan.steps} == {
        "slipway::embedding", "slipway::rms_norm", "slipway::add_rms_norm", "aten::linear", "slipway::gated_linear",
        "slipway::paged_attention", "slipway::gather_rows"}  # fmt: skip


def test_the_residual_stream_and_the_logits_are_float32(planned):
    plan = planned("llama")
    for step in plan.steps:
        types = [plan.storage[value] for value in step.outputs]
        match op_name(step.nodes[0]):
            case "slipway::embedding":
                assert types == [torch.float32]
            case "slipway::add_rms_norm":
                assert types == [torch.bfloat16, torch.float32]
            case "slipway::gated_linear" | "slipway::paged_attention":
                assert types == [torch.bfloat16]
    assert plan.storage[resolve(plan.graph.output_nodes()[0]).value] is torch.float32


def test_merged_linears_are_read_through_views(planned):
    attention = next(step for step in planned("llama").steps if op_name(step.nodes[0]) == "slipway::paged_attention")
    q, k, v = attention.inputs
    assert q.value == k.value == v.value and 0 == q.column < k.column < v.column


def test_what_no_plugin_takes_goes_to_few_segments(planned):
    plan = planned("starcoder2")
    segments = [step for step in plan.steps if not step.kernel]
    assert segments and all("aten::" in reason for reason in plan.declined.values())
    for step in segments:
        assert all(plan.storage[value] is torch.float32 for value in (*step.outputs, *(view.value for view in step.inputs)))


@pytest.mark.parametrize("family", ["gpt-neox", "cohere", "stablelm-one-kv-head"])
def test_a_segments_values_are_rows_of_one_count(planned, family):
    """So a step that wants no logits can leave out what comes behind the gather, and nothing else."""
    for step in planned(family).steps:
        if not step.kernel:
            assert len({rows_of(value) for node in step.nodes for value in outputs_of(node)} - {None}) == 1
        assert step.outputs and None not in map(rows_of, step.outputs)


def test_integers_stay_integers(planned):
    plan = planned("opt")
    add = next(value for value in plan.storage if value.node.name == "add")
    assert plan.storage[add] is torch.int32 and plan.declined["embedding_1"] == "rows by %add, not by the batch's input_ids"


@pytest.mark.parametrize("family", ["llama", "qwen3", "starcoder2", "gpt-neox", "cohere", "stablelm-one-kv-head"])
def test_every_value_is_made_before_it_is_read(planned, family):
    plan, made = planned(family), set()
    for step in plan.steps:
        assert {view.value for view in step.inputs} <= made
        made |= set(step.outputs)


def test_buffers_alive_together_do_not_overlap(planned):
    plan = planned("qwen3")
    layout = lay_out(plan, LIMITS)
    buffers, numbers = layout.buffers, layout.numbers
    ends = [b.offset + b.size.at(LIMITS.max_batch_tokens, LIMITS.max_logit_rows) for b in buffers]
    assert max(ends) <= layout.arena_bytes
    for step in plan.steps:
        used = {numbers[v.value] for v in step.inputs} | {numbers[value] for value in step.outputs}
        for a in used:
            assert all(a == b or ends[a] <= buffers[b].offset or ends[b] <= buffers[a].offset for b in used)


def test_getitem_of_a_kernel_is_one_of_its_outputs(planned):
    plan = planned("llama")
    node = next(n for n in plan.graph.nodes if n.target is operator.getitem)
    assert resolve(node).value.index == node.args[1] and resolve(node).column == 0
