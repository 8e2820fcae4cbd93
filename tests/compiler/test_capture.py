"""A captured graph, before and after all passes, against transformers: prefill, chunked prefill and paged decode."""

import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from slipway.compiler import capture as capturing
from slipway.compiler.checkpoint import Checkpoint
from slipway.compiler.errors import UserError
from slipway.passes.pipeline import run_passes
from tiny_models import FAMILIES, MAX_LENGTH, SHAPE, Cache, Tiny, random_tokens

LIMITS = SimpleNamespace(max_sequence_length=MAX_LENGTH)
SCHEDULE = (  # steps of (sequence, first token, end), and the rows whose logits are wanted
    ([(0, 0, 41), (1, 0, 5), (2, 0, 12)], [40, 45, 57]),
    ([(2, 12, 20), (0, 41, 42), (1, 5, 6)], [9, 3, 8, 7]),
    ([(0, 42, 43), (1, 6, 7), (2, 20, 21)], [0, 1, 2]),
)


def differences(tiny, graph, schedule=SCHEDULE):
    """The largest difference of logits in each step."""
    sequences = [random_tokens(48, seed) for seed in range(3)]
    wanted = [tiny.logits(tokens) for tokens in sequences]
    cache = Cache(graph, len(sequences))
    for chunks, rows in schedule:
        batch = cache.batch([(s, sequences[s][a:b]) for s, a, b in chunks], rows)
        positions = [(s, p) for s, a, b in chunks for p in range(a, b)]
        reference = torch.stack([wanted[s][p] for s, p in (positions[row] for row in rows)])
        yield (graph.run(batch, tiny.checkpoint) - reference).abs().max().item()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llama-dynamic"])
def test_equals_transformers(tiny, family):
    model = tiny(family)
    assert max(differences(model, model.graph)) < 1e-5
    assert max(differences(model, run_passes(model.graph))) < 2e-5


def test_dynamic_rotary_follows_the_length_of_the_sequence(tiny):
    """Past the trained length, each new token is rotated as for a sequence that ends with it, as transformers' cache does."""
    model, tokens = tiny("llama-dynamic"), random_tokens(40, 0)
    cache, past, graph = Cache(model.graph, 1), transformers.DynamicCache(), run_passes(model.graph)
    for start, end in [(0, 20), *((i, i + 1) for i in range(20, 40))]:
        reference = model.model(torch.tensor([tokens[start:end]]), past_key_values=past, use_cache=True).logits[0, -1:]
        found = graph.run(cache.batch([(0, tokens[start:end])], [end - start - 1]), model.checkpoint)
        assert torch.allclose(found, reference, atol=1e-5), start


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_graph_text(golden, family, tmp_path):
    graph = Tiny(family, tmp_path, num_hidden_layers=1).graph
    golden(f"graphs/{family}-captured.txt", graph.text())
    golden(f"graphs/{family}.txt", run_passes(graph).text())


def test_tied_weights_are_read_once(tiny):
    assert "lm_head.weight" not in tiny("qwen3").graph.weights


def test_paths_name_the_modules(tiny):
    paths = {node.name: node.meta["path"] for node in run_passes(tiny("llama").graph).nodes if "path" in node.meta}
    assert paths["l0_q_proj_k_proj_v_proj"] == "model.layers.0.self_attn.q_proj+k_proj+v_proj"
    assert paths["l1_gated_linear"] == "model.layers.1.mlp"


def test_says_what_it_does(tiny):
    steps = []
    capturing.capture(tiny("llama").checkpoint, LIMITS, steps.append)
    assert steps == ["building the model without weights", "tracing 2 layers", "simplifying the graph"]


@pytest.mark.parametrize(
    "config, where, found",
    [
        (transformers.MixtralConfig(**SHAPE, num_local_experts=2), "model.layers.0.mlp", "cannot be captured: aten."),
        (transformers.MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=1), "config.json", "no num_attention_heads"),
        (transformers.GptOssConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1), "model.layers.0.mlp", "cannot be captured: "),
        (transformers.Gemma3TextConfig(**SHAPE, use_bidirectional_attention=True), "Gemma3", "attention with a mask"),
        (transformers.BambaConfig(**SHAPE, attn_layer_indices=[1]), "model.layers.0.mamba", "cannot be"),
    ],
)
def test_names_what_cannot_be_captured(tmp_path, config, where, found):
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError) as error:
        capturing.capture(Checkpoint(tmp_path), LIMITS)
    assert where in error.value.where and error.value.found.startswith(found)


def test_missing_tensor(tmp_path):
    tiny = Tiny("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match="no tensor model.layers.2.*, nor 8 others"):
        capturing.capture(Checkpoint(tmp_path), LIMITS)
    assert len(tiny.checkpoint) == 21


def test_wrong_shape(tmp_path):
    Tiny("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 100}))
    with pytest.raises(UserError, match=r"model.safetensors: model.layers.0.mlp.*: shape \[.*96.*\]; expected \[.*100.*\]"):
        capturing.capture(Checkpoint(tmp_path), LIMITS)
