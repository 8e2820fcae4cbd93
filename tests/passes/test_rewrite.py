"""The matcher behind the passes: commutative ops, several results, shared variables, other readers, reasons."""

import pytest
import torch
from slipway.compiler.graph import Graph, WeightInfo
from slipway.compiler.graph_text import EXTENTS
from slipway.compiler.ops import Value, op
from slipway.passes.rewrite import Rewrite
from slipway.plugins import registry  # noqa: F401

T = EXTENTS["T"]


class Toy:
    """A graph under construction: x[T, 8] and y[T, 8] are its inputs, and w[8, 8] and n[8] its weights."""

    def __init__(self):
        self.graph = Graph({"w": WeightInfo((8, 8), torch.float32), "n": WeightInfo((8,), torch.float32)})
        self.x, self.y = (Value(self.graph.input(name, (T, 8), torch.float32), self.graph) for name in "xy")
        self.w, self.n = (Value(self.graph.attribute(name), self.graph) for name in "wn")

    def finish(self, value):
        self.graph.output(value.node)
        self.graph.verify()
        return self.graph

    def run(self, graph):
        generator = torch.Generator().manual_seed(0)
        x, y, w, n = (torch.randn(s, generator=generator) for s in [(3, 8), (3, 8), (8, 8), (8,)])
        return graph.run({"x": x, "y": y}, {"w": w, "n": n})


@pytest.fixture
def toy():
    return Toy()


class Gate(Rewrite):
    def before(self, x, y):
        return op.mul(op.silu(x), y)

    def after(self, x, y):
        return op.mul(y, op.silu(x))

    def unless(self, y):
        return "y is a constant" if y.is_constant else None


class AddNorm(Rewrite):
    def before(self, x, residual, weight, eps, plus_one):
        total = op.add(x, residual)
        return op.rms_norm(total, weight, eps, plus_one), total

    def after(self, x, residual, weight, eps, plus_one):
        return op.add_rms_norm(x, residual, weight, eps, plus_one)


@pytest.mark.parametrize("turned", [False, True])
def test_mul_matches_either_way_round(toy, turned):
    a, b = op.silu(toy.x), op.relu(toy.y)
    graph = toy.finish(op.mul(b, a) if turned else op.mul(a, b))
    after = graph.copy()
    assert Gate().apply(after).fired == 1
    after.verify()
    assert torch.equal(toy.run(graph), toy.run(after))


def test_declines_with_its_reason(toy):
    graph = toy.finish(op.mul(op.silu(toy.x), toy.n))
    report = Gate().apply(graph)
    assert (report.fired, report.declined) == (0, {"mul": "y is a constant"})


def test_two_results_and_readers_of_the_inner_one(toy):
    total = op.add(toy.x, toy.y)
    norm = op.rms_norm(total, toy.n, 1e-5, False)
    graph = toy.finish(op.mul(norm, op.silu(total)))
    after = graph.copy()
    assert AddNorm().apply(after).fired == 1
    after.verify()
    assert "slipway.add_rms_norm" in after.text() and "aten.add(" not in after.text()
    assert torch.equal(toy.run(graph), toy.run(after))


def test_an_inner_value_that_is_read_elsewhere_does_not_match(toy):
    gate = op.silu(toy.x)
    graph = toy.finish(op.add(op.mul(gate, toy.y), gate))
    assert Gate().apply(graph).fired == 0


def test_declines_when_one_result_feeds_the_other(toy):
    class Both(Rewrite):
        def before(self, x, y, w):
            return op.linear(x, w), op.silu(y)

        def after(self, x, y, w):
            return op.linear(x, w), op.silu(y)

    graph = toy.finish(op.linear(op.silu(toy.x), toy.w))
    assert Both().apply(graph).fired == 0


def test_the_same_variable_is_the_same_value(toy):
    class Square(Rewrite):
        def before(self, x):
            return op.mul(x, x)

        def after(self, x):
            return op.relu(op.mul(x, x))

    graph = toy.finish(op.mul(op.mul(toy.x, toy.y), op.mul(toy.y, toy.y)))
    assert Square().apply(graph).fired == 1


def test_an_omitted_argument_is_its_default(toy):
    class Unbiased(Rewrite):
        def before(self, x, w):
            return op.linear(x, w)

        def after(self, x, w):
            return op.silu(op.linear(x, w))

    biased = toy.finish(op.linear(toy.x, toy.w, toy.n))
    assert Unbiased().apply(biased).fired == 0


def test_rest_stands_for_what_is_not_written_out(toy):
    class Eps(Rewrite):
        def before(self, x, **norm):
            return op.rms_norm(x=op.silu(x), **norm)

        def after(self, x, **norm):
            return op.rms_norm(x=x, **norm | {"eps": 0.5})

        def unless(self, eps):
            return f"eps is {eps}" if eps > 0.1 else None

    graph = toy.finish(op.rms_norm(op.silu(op.rms_norm(op.silu(toy.x), toy.n, 1e-6, True)), toy.n, 0.25, False))
    report = Eps().apply(graph)
    assert report.fired == 1 and list(report.declined.values()) == ["eps is 0.25"]
    assert "slipway.rms_norm(%x, @n, 0.5, True)" in graph.text()


def test_new_nodes_come_after_what_they_read(toy):
    """The second factor is made after the first reader of the first one."""
    total = op.add(toy.x, toy.y)
    early = op.silu(total)
    late = op.rms_norm(total, op.relu(toy.n), 1e-5, False)
    graph = toy.finish(op.add(early, late))
    after = graph.copy()
    assert AddNorm().apply(after).fired == 1
    after.verify()
    assert torch.equal(toy.run(graph), toy.run(after))
