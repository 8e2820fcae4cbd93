"""Debug output, the repro file of a broken pass, and that its replay breaks alike."""

import re

import pytest
from slipway.compiler.errors import InternalError
from slipway.compiler.ops import find
from slipway.passes import pipeline
from slipway.passes.drop_dead_nodes import DropDeadNodes
from slipway.passes.rewrite import Report


class BreakGraph:
    def apply(self, graph):
        node = next(n for n in graph.nodes if n.op == "call_function")
        node.meta["val"] = node.meta["val"].new_empty(1, 2)
        return Report(1)


def test_debug_ladder(tiny, monkeypatch, capsys):
    def output(level):
        monkeypatch.setenv("SLIPWAY_DEBUG", level)
        pipeline.run_passes(tiny("llama-biased").graph)
        return capsys.readouterr().err

    assert output("0") == ""
    assert re.search(r"^pass FuseRotary: 2 in [\d.]+ ms$", output("1"), re.M)
    assert "+%l0_paged_attention_1 = slipway.paged_attention(%l0_q_proj" in output("2")
    assert "  not %l0_mul: a bias is added before the product" in output("3")


def test_a_broken_pass_leaves_a_repro_file(tiny, monkeypatch):
    with pytest.raises(InternalError, match="pass BreakGraph: .* is said to be") as error:
        pipeline.run_passes(tiny("llama").graph, (DropDeadNodes(), BreakGraph(), DropDeadNodes()))
    path = re.search(r"repro: (.*)", str(error.value))[1]
    monkeypatch.setattr(pipeline, "PASSES", (DropDeadNodes(), BreakGraph()))
    with pytest.raises(InternalError, match="pass BreakGraph"):
        pipeline.replay(path)
    monkeypatch.setattr(BreakGraph, "apply", DropDeadNodes.apply)
    assert find("aten::linear") in {node.target for node in pipeline.replay(path).nodes}


def test_the_given_graph_is_left_alone(tiny):
    before = tiny("llama").graph.text()
    pipeline.run_passes(tiny("llama").graph)
    assert tiny("llama").graph.text() == before
