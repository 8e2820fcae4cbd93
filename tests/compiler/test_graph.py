"""Graph: what verify refuses, the text and JSON forms, constants, order."""

import pytest
import torch
from slipway.compiler import graph_json
from slipway.compiler.errors import InternalError
from slipway.compiler.graph import Graph, WeightInfo
from slipway.compiler.graph_text import EXTENTS, extent_text
from slipway.compiler.ops import Value, find, op
from slipway.plugins import registry  # noqa: F401
from slipway.quantization.formats import WeightFormat

T, R, S = (EXTENTS[name] for name in "TRS")


@pytest.fixture
def graph():
    """linear(x, cat(a, b)) + table, of which the table is a constant of the graph."""
    graph = Graph({"a": WeightInfo((2, 4), torch.bfloat16), "b": WeightInfo((3, 4), torch.float16, WeightFormat("int4", 4, 32, True))}, {"table": torch.arange(5.0)})
    x = Value(graph.input("x", (T, 4), torch.float32), graph)
    a, b, table = (Value(graph.attribute(name), graph) for name in ("a", "b", "table"))
    graph.output(op.add(op.linear(x, op.cat([a, b])), table).node)
    return graph


WEIGHTS = {"a": torch.full((2, 4), 0.5, dtype=torch.bfloat16), "b": torch.ones(3, 4, dtype=torch.bfloat16)}


class Recorder(dict):
    """Weights that remember which of them were read."""

    read = ()

    def __getitem__(self, name):
        self.read += (name,)
        return super().__getitem__(name)


def test_text(graph):
    graph.verify()
    assert graph.text().splitlines() == [
        "%x  [T, 4]",
        "%cat = aten.cat([@a, @b])  [5, 4]",
        "%linear = aten.linear(%x, %cat)  [T, 5]",
        "%add = aten.add(%linear, @table)  [T, 5]",
        "return %add",
    ]


@pytest.mark.parametrize("extent, text", [(7, "7"), (0, "0"), (T, "T"), (8 * T, "8*T"), (S + 1, "S+1"), (S, "S"), (R, "R")])
def test_extents_are_written_by_name(extent, text):
    assert extent_text(extent) == text


def test_run_computes_in_float32(graph):
    logits = graph.run({"x": torch.ones(2, 4)}, WEIGHTS)
    assert logits.dtype is torch.float32
    assert logits.tolist() == [[2.0, 3.0, 6.0, 7.0, 8.0]] * 2


def test_constants(graph):
    nodes = {node.name: node for node in graph.nodes}
    assert [name for name, node in nodes.items() if graph.is_constant(node)] == ["a", "b", "table", "cat"]
    assert graph.evaluate(nodes["cat"], WEIGHTS).dtype is torch.bfloat16
    with pytest.raises(InternalError, match="linear is not a constant"):
        graph.evaluate(nodes["linear"], WEIGHTS)


def test_evaluate_reads_only_what_it_needs_and_computes_in_float32(graph):
    with graph.fx.inserting_before(graph.fx.output_node()):
        scaled = op.mul(Value(graph.attribute("a"), graph), 1.0 + 2**-12).node
    weights = Recorder(WEIGHTS)
    assert graph.evaluate(scaled, weights)[0, 0] == 0.5 + 2**-13
    assert weights.read == ("a",)


def test_json_round_trip(graph):
    again = graph_json.loads(graph_json.dumps(graph))
    again.verify()
    assert again.text() == graph.text()
    assert again.weights == graph.weights and torch.equal(again.constants["table"], graph.constants["table"])
    x = {"x": torch.randn(3, 4)}
    assert torch.equal(graph.run(x, WEIGHTS), again.run(x, WEIGHTS))


def test_json_round_trip_of_a_model(tiny):
    graph = tiny("phi3").graph
    again = graph_json.loads(graph_json.dumps(graph))
    assert again.text() == graph.text()
    assert [n.meta.get("path") for n in again.nodes] == [n.meta.get("path") for n in graph.nodes]


def test_diff(graph):
    other = graph.copy()
    assert graph.diff(other) == ""
    next(n for n in other.nodes if n.name == "add").target = find("aten::mul.Tensor")
    assert "-%add = aten.add(%linear, @table)  [T, 5]\n+%add = aten.mul(%linear, @table)  [T, 5]" in graph.diff(other)


def test_copy_renumbers(graph):
    with graph.fx.inserting_before(graph.fx.output_node()):
        graph.call(find("aten::relu"), graph.output_nodes()[0])
        relu = graph.call(find("aten::relu"), graph.output_nodes()[0])
    graph.fx.output_node().args = ((relu,),)
    graph.drop_dead()
    assert relu.name == "relu_1"
    assert "return %relu\n" in graph.copy(renumber=True).text()


def test_drop_dead_drops_weights_too(graph):
    linear = next(n for n in graph.nodes if n.name == "linear")
    graph.fx.output_node().args = ((linear.args[0],),)
    assert graph.drop_dead() == 6
    assert not graph.weights and not graph.constants


def test_verify_refuses_a_wrong_type(graph):
    graph.nodes[-2].meta["val"] = torch.empty(3, 3, device="meta")
    with pytest.raises(InternalError, match="%add is said to be"):
        graph.verify()


def test_verify_refuses_a_missing_type(graph):
    del graph.nodes[-2].meta["val"]
    with pytest.raises(InternalError, match="%add has no type"):
        graph.verify()


def test_verify_refuses_an_unknown_weight(graph):
    del graph.weights["a"]
    with pytest.raises(InternalError, match="names the unknown weight a"):
        graph.verify()


def test_verify_refuses_other_ops(graph):
    graph.nodes[-2].target = torch.ops.prims.convert_element_type.default
    with pytest.raises(InternalError, match="only aten, slipway ops are allowed"):
        graph.verify()


def test_verify_refuses_disorder_which_sort_mends(graph):
    linear, add = (next(n for n in graph.nodes if n.name == name) for name in ("linear", "add"))
    add.append(linear)
    with pytest.raises(InternalError, match="%add reads %linear before it is made"):
        graph.verify()
    graph.sort()
    graph.verify()


def test_sort_refuses_a_cycle(graph):
    linear, add = (next(n for n in graph.nodes if n.name == name) for name in ("linear", "add"))
    linear.args = (add, linear.args[1])
    with pytest.raises(InternalError, match="%linear depends on itself"):
        graph.sort()


def test_verify_wants_an_output():
    with pytest.raises(InternalError, match="no output"):
        Graph().verify()


def test_an_op_with_wrong_arguments(graph):
    x = Value(graph.placeholder("x"), graph)
    with pytest.raises(InternalError, match=r"aten::silu: unknown arguments \['beta'\]"):
        op.silu(x, beta=1.0)
    with pytest.raises(InternalError, match=r"missing \['weight'\]"):
        op.linear(x)
