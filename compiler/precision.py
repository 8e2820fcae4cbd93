"""A recipe's precision on a graph: every override must have a linear, and the formats in use set the accuracy gate."""

from __future__ import annotations

import fnmatch
import re

from slipway.compiler.graph import Graph
from slipway.compiler.weights import has_codes, leaf_names
from slipway.quantization.formats import INT4_GROUPS, KV_FP8
from slipway.recipes.problems import UserErrors, did_you_mean
from slipway.recipes.schema import ACTIVATIONS_KL_LIMITS, KL_LIMITS, Recipe


def check_overrides(recipe: Recipe, modules: set[str]) -> None:
    """Raises UserError for every pattern of precision.overrides that no linear of the model has. modules: the linears' paths."""
    patterns = modules | {re.sub(r"\.\d+\.", ".*.", module) for module in modules}
    UserErrors.check([
        recipe.error(("precision", "overrides", number, "match"), f"{override.match!r} matches no linear of this model",
                     "a module path, may hold * and ?", did_you_mean(override.match, sorted(patterns)) or f"the model has {min(modules)}")
        for number, override in enumerate(recipe.precision.overrides)
        if not fnmatch.filter(modules, override.match)
    ])  # fmt: skip


def check_codes(recipe: Recipe, graph: Graph) -> None:
    """Raises UserError for a linear that the checkpoint stores as int4 and the recipe in a format of four bits that does not hold its codes: they would
    be rounded twice. Wider formats take what the codes stand for.
    """
    for node in graph.nodes:
        wanted = node.meta.get("weight_format")
        for name in leaf_names(node.args[1]) if wanted else ():
            stored = graph.weights[name].codes if name in graph.weights else None
            if stored and wanted.bits <= stored.bits and not wanted.holds(stored):
                smallest = next(size for size in INT4_GROUPS[::-1] if stored.group_size % size == 0)
                raise recipe.error(("precision",), f"the checkpoint stores {name} as {stored}, and the recipe as {wanted}",
                                   "the same codes, or more bits", f"weights: int4, group_size: {smallest}, zero_point: {str(stored.zero_point).lower()}")  # fmt: skip


def settle_gate(recipe: Recipe, graph: Graph) -> Recipe:
    """The recipe with its verify.kl stated: by itself, or by the loosest format in the graph: of weights, activations or the KV cache. What is lost
    when a checkpoint was made int4 is no loss of the engine's: its codes are held as exactly as int8, at least.
    """
    if recipe.verify.kl is not None:
        return recipe
    linears = [node for node in graph.nodes if "weight_format" in node.meta]
    used = {"int8" if node.meta["weight_format"].name == "int4" and has_codes(graph, node.args[1]) else node.meta["weight_format"].name for node in linears}
    used |= {"fp8" for node in graph.nodes if node.meta.get("kv_format") == KV_FP8}
    limits = [KL_LIMITS[name] for name in used] + [ACTIVATIONS_KL_LIMITS.get(recipe.precision.activations, 0)]
    kl = max(*limits, min(KL_LIMITS.values()))
    return recipe.model_copy(update={"verify": recipe.verify.model_copy(update={"kl": kl})})
