"""Every pass fires where it should, leaves the logits as they were, and says why it declines."""

import pytest
import torch
from slipway.compiler.graph import Graph, WeightInfo
from slipway.compiler.graph_text import EXTENTS
from slipway.compiler.ops import Value, arguments, is_op, op
from slipway.passes.draw_tokens import DrawTokens
from slipway.passes.fold_constants import FOLD_CONSTANTS
from slipway.passes.fuse_add_rms_norm import FuseAddRmsNorm
from slipway.passes.fuse_gated_activation import FUSE_GATED_ACTIVATION
from slipway.passes.fuse_gated_linear import FUSE_GATED_LINEAR
from slipway.passes.fuse_linear_residual import FuseLinearResidual
from slipway.passes.fuse_qk_norm import FuseQkNorm
from slipway.passes.fuse_rotary import FuseRotary
from slipway.passes.gather_logit_rows import GatherLogitRows
from slipway.passes.merge_qkv_linears import MergeQkvLinears
from slipway.passes.order_columns import OrderColumns
from slipway.passes.pipeline import name_of, passes_for
from slipway.quantization.formats import WeightFormat
from tiny_models import some_batch

T = EXTENTS["T"]
FAMILIES = ("llama", "llama-biased", "qwen3", "phi3", "granite", "granite-swa", "gemma2", "starcoder2", "gpt-neox", "stablelm")
FIRES = {  # a family, and how often each pass fires on its two layers
    "llama": {"GatherLogitRows": 10, "FuseRotary": 2, "FuseGatedLinear(silu)": 2, "MergeQkvLinears": 2, "FuseAddRmsNorm": 4},
    "llama-biased": {"MergeQkvLinears": 4, "FuseGatedActivation(silu)": 2},
    "qwen3": {"FuseRotary": 2, "FuseQkNorm": 2},
    "phi3": {"FuseRotary": 2, "FuseGatedActivation(silu)": 2},
    "granite": {"FoldLinearScale(mul)": 4, "FoldLinearScale(div)": 1, "FoldEmbeddingScale(mul)": 1},
    "stablelm": {"FusePartialRotary": 4, "FuseRotary": 2},
    "gemma2": {"FuseGatedLinear(gelu_tanh)": 2, "FoldLinearScale(div)": 1, "FoldEmbeddingScale(mul)": 1},
}


OF_GPUS = {"llama": {"FuseLinearResidual": 4, "FuseAddRmsNorm": 0}, "llama-biased": {"FuseLinearResidual": 4}, "gemma2": {"FuseLinearResidual": 0, "FuseAddRmsNorm": 4}}


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_pass_keeps_the_logits(tiny, family, gpu):
    graph, checkpoint = tiny(family).graph, tiny(family).checkpoint
    fired = {}
    for each in passes_for(gpu):
        if isinstance(each, DrawTokens):
            continue  # its graph has another output
        after = graph.copy()
        fired[name_of(each)] = each.apply(after).fired
        after.verify()
        if fired[name_of(each)]:
            before_logits, logits = (g.run(some_batch(g), checkpoint) for g in (graph, after))
            assert torch.allclose(before_logits, logits, atol=1e-5, rtol=1e-6), name_of(each)
        graph = after
    wanted = FIRES.get(family, {}) | (OF_GPUS.get(family, {}) if gpu else {})
    assert wanted.items() <= fired.items()


def test_only_the_wanted_rows_go_through_the_last_mlp(tiny):
    graph = tiny("llama").graph.copy()
    GatherLogitRows().apply(graph)
    rows = {node.name: node.meta["val"].shape[0] for node in graph.nodes if is_op(node, "aten::linear")}
    assert {name for name, count in rows.items() if count == EXTENTS["R"]} == {
        "l1_o_proj", "l1_gate_proj", "l1_up_proj", "l1_down_proj", "lm_head",
    }  # fmt: skip


# reasons for which passes decline, on graphs that give them


class Toy:
    """Inputs x, y[T, 8] and positions[T]; weights of the given shapes."""

    def __init__(self, **weights):
        self.graph = Graph({name: WeightInfo(shape, torch.float32) for name, shape in weights.items()})
        self.x, self.y = (self.value(self.graph.input(name, (T, 8), torch.float32)) for name in "xy")
        self.positions, self.rows = (self.value(self.graph.input(n, (T,), torch.int32)) for n in ("positions", "rows"))
        for name in weights:
            setattr(self, name, self.value(self.graph.attribute(name)))

    def value(self, node):
        return Value(node, self.graph)

    def attention(self, **changes):
        """A call with one head of 8 columns; `changes` by argument."""
        batch = {
            name: self.value(self.graph.input(name, shape, torch.int32))
            for name, shape in {"cu_seqlens": (3,), "kv_lens": (2,), "block_table": (2, 4)}.items()
        }
        cache = self.value(self.graph.input("kv_cache", (1, 4, 2, 1, 32, 8), torch.float32))
        settings = dict(layer=0, num_heads=1, num_kv_heads=1, head_dim=8, scale=1.0, window=None, softcap=None, sinks=None)
        norms = dict(q_norm=None, k_norm=None, norm_eps=0.0, norm_plus_one=False, rope=None, rope_interleaved=False)
        given = dict(q=self.x, k=self.x, v=self.x, positions=self.positions, kv_cache=cache)
        return op.paged_attention(**given | batch | settings | norms | changes)

    def declined(self, rewrite, value):
        self.graph.output(value.node)
        report = rewrite.apply(self.graph)
        assert report.fired == 0
        (reason,) = report.declined.values()
        return reason


def test_fold_constants_declines():
    toy = Toy(w=(8, 8), v=(8,))
    assert toy.declined(FOLD_CONSTANTS[0], op.mul(op.linear(toy.x, toy.w), toy.v)) == "the factor is not one constant number"
    toy = Toy()
    assert toy.declined(FOLD_CONSTANTS[0], op.mul(op.linear(toy.x, toy.y), 2.0)) == "the weight is not a constant"


def test_fuse_rotary_declines():
    toy = Toy(table=(16, 2, 4))
    other = op.rotary_table(toy.rows, toy.table)
    rotated = {name: op.rotary(x, other, 8, False) for name, x in (("q", toy.x), ("k", toy.y))}
    assert toy.declined(FuseRotary(), toy.attention(**rotated)).startswith("the rotation is by other positions")
    toy = Toy(table=(16, 2, 4), n=(8,))
    angles = op.rotary_table(toy.positions, toy.table)
    rotated = {name: op.rotary(x, angles, 8, False) for name, x in (("q", toy.x), ("k", toy.y))}
    reason = toy.declined(FuseRotary(), toy.attention(**rotated, q_norm=toy.n, k_norm=toy.n))
    assert reason == "the attention norms before it rotates, the graph after"
    toy = Toy(angles=(T, 2, 4))
    rotated = {name: op.rotary(x, toy.angles, 8, False) for name, x in (("q", toy.x), ("k", toy.y))}
    assert toy.declined(FuseRotary(), toy.attention(**rotated)) == "the angles are not rows of a table"


def test_fuse_qk_norm_declines():
    toy = Toy(n=(4,))
    normed = {name: op.head_rms_norm(x, toy.n, 1e-6, False) for name, x in (("q", toy.x), ("k", toy.y))}
    assert toy.declined(FuseQkNorm(), toy.attention(**normed)) == "the norms' weights are [4] and [4], heads have 8 columns"


def test_fuse_gated_linear_declines():
    toy = Toy(gate=(4, 8), up=(1, 8))
    gated = op.mul(op.silu(op.linear(toy.x, toy.gate)), op.linear(toy.x, toy.up))
    assert toy.declined(FUSE_GATED_LINEAR[0], gated) == "gate is [4, 8], up [1, 8]"
    toy = Toy(gate=(4, 8), up=(4, 8), b=(4,))
    gated = op.mul(op.silu(op.linear(toy.x, toy.gate, toy.b)), op.linear(toy.x, toy.up))
    assert toy.declined(FUSE_GATED_LINEAR[0], gated) == "a bias is added before the product"
    toy = Toy(gate=(4, 8), up=(4, 8))
    up = op.linear(toy.x, toy.up)
    up.node.meta["weight_format"] = "int8"
    gated = op.mul(op.silu(op.linear(toy.x, toy.gate)), up)
    assert toy.declined(FUSE_GATED_LINEAR[0], gated) == "their weight formats differ"


def test_fuse_gated_activation_declines():
    toy = Toy()
    gated = op.mul(op.silu(op.slice(toy.x, 1, 0, 3)), op.slice(toy.x, 1, 3, 6))
    assert toy.declined(FUSE_GATED_ACTIVATION[0], gated) == "the halves are columns 0 to 3 and 3 to 6 of 8"


def test_fuse_add_rms_norm_declines():
    toy = Toy(n=(8,))
    normed = op.rms_norm(op.add(toy.x, toy.n), toy.n, 1e-6, False)
    assert toy.declined(FuseAddRmsNorm(), normed) == f"the add broadcasts [8] to [{T}, 8]"


def test_fuse_linear_residual_declines():
    toy = Toy(w=(8, 8))
    assert toy.declined(FuseLinearResidual(), op.add(op.linear(toy.x, toy.w), 1.0)) == "a number is added"
    toy = Toy(w=(8, 8), b=(8,))
    assert toy.declined(FuseLinearResidual(), op.add(op.linear(toy.x, toy.w), toy.b)) == "the add broadcasts [8]"
    toy = Toy()
    weight = toy.value(toy.graph.input("weight", (8, 8), torch.float32))
    assert toy.declined(FuseLinearResidual(), op.add(toy.y, op.linear(toy.x, weight))) == "the weight is not a constant"


def test_fuse_linear_residual_takes_either_order_and_the_module_of_the_linear():
    for order in (lambda a, b: op.add(a, b), lambda a, b: op.add(b, a)):
        toy = Toy(w=(8, 8))
        linear = op.linear(toy.x, toy.w)
        linear.node.meta["path"] = "model.layers.3.self_attn.o_proj"
        toy.graph.output(order(linear, toy.y).node)
        assert FuseLinearResidual().apply(toy.graph).fired == 1
        (fused,) = toy.graph.output_nodes()
        assert is_op(fused, "slipway::linear_residual") and (fused.name, fused.meta["path"]) == ("l3_o_proj", "model.layers.3.self_attn.o_proj")


def test_merge_qkv_linears_declines():
    toy = Toy(q=(4, 8), k=(4, 8), b=(4,))
    both = op.add(op.linear(toy.x, toy.q), op.linear(toy.x, toy.k, toy.b))
    assert toy.declined(MergeQkvLinears(), both) == "some have a bias and some have none"
    toy = Toy(q=(8, 8))
    both = op.cat([op.linear(toy.x, toy.q), op.linear(toy.x, toy.y)], 1)
    assert toy.declined(MergeQkvLinears(), both) == "a weight is not a constant"
    toy = Toy(q=(4, 8), k=(4, 8))
    q, k = op.linear(toy.x, toy.q), op.linear(toy.x, toy.k)
    q.node.meta["weight_format"] = "int8"
    assert toy.declined(MergeQkvLinears(), op.add(q, k)) == "their weight formats differ"


def test_merged_linear_keeps_weight_format_and_order():
    toy = Toy(q=(4, 8), k=(2, 8))
    parts = [op.linear(toy.x, toy.q), op.linear(toy.x, toy.k)]
    for part in parts:
        part.node.meta["weight_format"] = "int8"
    toy.graph.output(op.cat(parts[::-1], 1).node)
    assert MergeQkvLinears().apply(toy.graph).fired == 1
    (merged,) = (node for node in toy.graph.nodes if is_op(node, "aten::linear"))
    assert merged.meta["weight_format"] == "int8"
    assert [w.target for w in arguments(merged)["weight"].args[0]] == ["q", "k"]


def test_a_gpus_graph_ends_with_tokens():
    toy = Toy()
    logits = op.gather_rows(op.add(toy.x, toy.y), toy.rows)
    toy.graph.output(logits.node)
    assert DrawTokens().apply(toy.graph).fired == 1
    toy.graph.verify()
    first, tokens = toy.graph.output_nodes()
    assert first is logits.node and is_op(tokens, "slipway::draw_tokens") and tokens.args == (first,)


def test_gather_logit_rows_declines():
    toy = Toy()
    attended = toy.attention()
    assert toy.declined(GatherLogitRows(), op.gather_rows(attended, toy.rows)) == "%paged_attention is not made row by row"
    toy = Toy()
    total = op.add(toy.x, toy.y)
    both = op.add(op.gather_rows(total, toy.rows), op.gather_rows(toy.x, toy.rows))
    toy.graph.output(op.add(both, total).node)
    report = GatherLogitRows().apply(toy.graph)
    assert report.declined["gather_rows"] == "all rows of %add are read elsewhere"


def ordered(toy, weight, order):
    """A weight whose inputs are stored in another order, as the model has it."""
    graph = toy.graph
    inverse = graph.call(torch.ops.aten.argsort.default, order.node)
    return toy.value(graph.call(torch.ops.aten.index_select.default, weight.node, 1, inverse))


def test_activations_take_the_order_of_the_weights_and_share_it():
    toy = Toy(a=(4, 8), b=(4, 8), c=(4, 8), order=(8,), other=(8,))
    for name in ("order", "other"):
        toy.graph.weights[name] = WeightInfo((8,), torch.int64)
        getattr(toy, name).node.meta["val"] = torch.empty(8, dtype=torch.int64, device="meta")
    first, second, third = (op.linear(toy.x, ordered(toy, w, o)) for w, o in ((toy.a, toy.order), (toy.b, toy.order), (toy.c, toy.other)))
    toy.graph.output(op.add(op.add(first, second), third).node)
    random = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(4, 8, generator=random) for name in "abc"} | {name: torch.randperm(8, generator=random) for name in ("order", "other")}
    inputs = {"x": torch.randn(3, 8), "y": torch.zeros(3, 8), "positions": torch.arange(3), "rows": torch.arange(3)}
    before = toy.graph.run(inputs, weights)
    assert OrderColumns().apply(toy.graph).fired == 3
    toy.graph.verify()
    assert toy.graph.text().count("gather_columns(") == 2 and "index_select" not in toy.graph.text()
    torch.testing.assert_close(toy.graph.run(inputs, weights), before)


def test_weights_that_are_stored_differently_are_not_merged():
    toy = Toy(a=(4, 8), b=(4, 8))
    toy.graph.weights["a"] = WeightInfo((4, 8), torch.float16, WeightFormat("int4", 4, 32, True))
    both = op.add(op.linear(toy.x, toy.a), op.linear(toy.x, toy.b))
    assert toy.declined(MergeQkvLinears(), both) == "the checkpoint stores their weights in different formats"
