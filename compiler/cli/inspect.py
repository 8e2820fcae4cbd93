"""`slipway inspect`: what an engine directory holds, from its manifest alone."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import click

from slipway.compiler.cli.options import engine_argument, json_option
from slipway.compiler.cli.steps import StepGroup, group_steps
from slipway.compiler.cli.tables import facts, print_json, table
from slipway.compiler.quantities import bytes_text, count_text

EPILOG = """\b
Examples:
  slipway inspect engine
  slipway inspect engine --json | jq .limits

Nothing is loaded: an engine made for another machine can be inspected too.
"""


@click.command(epilog=EPILOG)
@engine_argument
@json_option
def inspect(engine: Path, as_json: bool) -> None:
    """Show what ENGINE, an engine directory, holds: recipe, target, limits, plan, weights and files."""
    from slipway.runtime.manifest import Manifest

    manifest = Manifest.read(engine)
    accuracy = accuracy_of(manifest, engine)
    if as_json:
        print_json(summary(manifest) | {"accuracy": accuracy})
        return
    click.echo(facts([*overview(manifest), ("accuracy", accuracy_text(accuracy))]))
    click.echo("\nPlan, in groups of the same step in every layer")
    click.echo(plan_table(group_steps(manifest)))
    click.echo("\nFiles")
    click.echo(table(("FOLDER", "FILES", "SIZE"), file_rows(manifest), right=(1, 2)))


def overview(manifest) -> list[tuple[str, str]]:
    limits, precision, kv = manifest.limits, manifest.recipe.get("precision", {}), manifest.plan.kv
    return [
        ("model", manifest.model),
        ("target", f"{manifest.target.kind}, {manifest.target.isa}"),
        ("weights", precision_text(precision)),
        ("sequences", f"{limits.max_sequences} at once, of {count_text(limits.max_sequence_length)} tokens at most"),
        ("a step", f"{count_text(limits.max_batch_tokens)} tokens, {count_text(limits.max_logit_rows)} logit rows at most"),
        ("KV cache", cache_text(kv, manifest.recipe.get("limits", {}).get("kv_cache_tokens") == "auto")),
        ("arena", bytes_text(manifest.plan.arena_bytes)),
        ("deterministic", "yes" if manifest.deterministic else "no"),
        ("chat template", "yes" if manifest.tokenizer and manifest.tokenizer.has_chat_template else "no"),
        ("built by", f"slipway {manifest.slipway_version}"),
    ]


def cache_text(kv, auto: bool) -> str:
    size = f"{count_text(kv.num_blocks * kv.block_size)} tokens, {bytes_text(kv.num_blocks * kv.layers * kv.block_bytes)}"
    return f"auto: {size}, or what half of the memory holds at load" if auto else size


def accuracy_of(manifest, engine: Path) -> dict | None:
    """What the build measured, None if it did not."""
    from slipway.runtime.errors import EngineError

    if "verify.json" not in manifest.files:
        return None
    try:
        return json.loads((engine / "verify.json").read_text())
    except ValueError as error:
        raise EngineError(str(engine / "verify.json"), f"not JSON ({error})", hint="the engine is damaged: copy or build it again") from None


def accuracy_text(accuracy: dict | None) -> str:
    if accuracy is None:
        return "not verified"
    return f"verified: KL {accuracy['kl']:.2g} nats a token, top-1 agreement {accuracy['top1']:.1%} over {accuracy['tokens']} tokens"


def precision_text(precision: dict) -> str:
    if not precision:
        return "unknown"
    group = f" in groups of {precision['group_size']}" if precision.get("group_size") else ""
    activations = f", activations {precision['activations']}" if precision.get("activations", "bf16") != "bf16" else ""
    return f"{precision['weights']}{group}, lm_head {precision['lm_head']}{activations}, KV cache {precision['kv_cache']}"


def plan_table(groups: list[StepGroup]) -> str:
    rows = [(g.name, g.op, str(len(g.steps)), bytes_text(g.weight_bytes) if g.weight_bytes else "") for g in groups]
    total = ("all", "", str(sum(len(g.steps) for g in groups)), bytes_text(sum(g.weight_bytes for g in groups)))
    return table(("STEP", "OP", "TIMES", "WEIGHTS"), [*rows, total], right=(2, 3))


def file_rows(manifest) -> list[tuple[str, str, str]]:
    counts, sizes = Counter(), Counter()
    for name, file in manifest.files.items():
        folder = name.partition("/")[0] + "/" if "/" in name else name
        counts[folder] += 1
        sizes[folder] += file.bytes
    return [(folder, str(counts[folder]), bytes_text(sizes[folder])) for folder in sorted(counts)]


def summary(manifest) -> dict:
    """The manifest without the details of buffers and operands."""
    plan = manifest.plan
    return {
        **{name: getattr(manifest, name) for name in ("model", "deterministic", "slipway_version", "format_version", "abi_version")},
        **{name: dataclasses.asdict(getattr(manifest, name)) for name in ("target", "limits")},
        "recipe": manifest.recipe,
        "kv_cache": dataclasses.asdict(plan.kv),
        "arena_bytes": plan.arena_bytes,
        "plan": [
            {"name": g.name, "op": g.op, "times": len(g.steps), "weight_bytes": g.weight_bytes} for g in group_steps(manifest)
        ],
        "files": {name: file.bytes for name, file in manifest.files.items()},
    }
