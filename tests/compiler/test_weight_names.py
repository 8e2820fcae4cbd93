"""Tensors that a checkpoint stores under other names than the model's are found as transformers finds them."""

from types import SimpleNamespace

import pytest
from slipway.compiler.capture import build_on_meta, capture
from slipway.compiler.errors import UserError
from slipway.compiler.weight_names import weight_names
from tiny_models import MAX_LENGTH
from transformers import conversion_mapping
from transformers.core_model_loading import Transpose, WeightConverter


def test_a_familys_own_renamings(tiny):
    graph, tensors = tiny("gpt-neox").graph, tiny("gpt-neox").checkpoint
    assert "embed_out.weight" in graph.weights and graph.weights.keys() <= set(tensors)


def test_a_checkpoint_of_the_model_without_its_head(tiny):
    """As gpt2's own is: no prefix before the names."""
    tiny("gpt2").graph  # registers our attention, with which the model is built
    model, _ = build_on_meta(tiny("gpt2").checkpoint.config)
    names = weight_names(model, [name.removeprefix("transformer.") for name in tiny("gpt2").checkpoint])
    assert names.stored["transformer.h.0.ln_1.weight"] == "h.0.ln_1.weight"
    assert {name for name, _ in model.named_parameters()} <= names.stored.keys()


def test_weights_that_need_more_than_a_name_are_refused(tiny, monkeypatch):
    turned = [WeightConverter("mlp.down_proj.weight", "mlp.down_proj.weight", [Transpose()])]
    monkeypatch.setattr(conversion_mapping, "get_checkpoint_conversion_mapping", {"llama": turned, "legacy": []}.get)
    with pytest.raises(UserError, match=r"model.layers.0.mlp.down_proj.weight has to be computed from model.layers.0.*\nhint: load it"):
        capture(tiny("llama").checkpoint, SimpleNamespace(max_sequence_length=MAX_LENGTH))
