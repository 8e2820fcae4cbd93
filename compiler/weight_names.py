"""Names of a checkpoint's tensors -> names of the model's parameters, by the renamings that transformers loads with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key


@dataclass
class WeightNames:
    """stored: parameter -> the tensor it is. converted: parameter -> a tensor that transformers makes it from by more than a new name."""

    stored: dict[str, str] = field(default_factory=dict)
    converted: dict[str, str] = field(default_factory=dict)


def weight_names(model: PreTrainedModel, tensors: Iterable[str]) -> WeightNames:
    """What from_pretrained would load each tensor as: renamed, and with or without the prefix of the model without its head."""
    transforms, state = get_model_conversion_mapping(model), model.state_dict()
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    names = WeightNames()
    for tensor in tensors:
        name, converter = rename_source_key(tensor, renamings, converters, model.base_model_prefix, state)
        if name not in state and tensor in state:
            name, converter = tensor, None
        (names.converted if converter else names.stored)[name] = tensor
    return names
