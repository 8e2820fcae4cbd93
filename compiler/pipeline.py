"""Recipe and checkpoint -> engine directory: capture, passes, plan, kernels, weights, segments, verification, publication."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers

from slipway.compiler import directory, env, eviction, graph_json, tokenizer_files, verify
from slipway.compiler.cache import StageCache, digest
from slipway.compiler.capture import capture
from slipway.compiler.cards import cards_for
from slipway.compiler.checkpoint import Checkpoint
from slipway.compiler.engine_plan import make_plan
from slipway.compiler.errors import InternalError, UserError
from slipway.compiler.graph import Graph
from slipway.compiler.identity import Identities
from slipway.compiler.cubins import compile_cubins
from slipway.compiler.kernels import EMULATION_CPU_FLAGS, compile_library, library_parts
from slipway.compiler.layout import lay_out
from slipway.compiler.machine import host_isa, host_isas, measure_limits, missing_flags
from slipway.compiler.ops import is_op
from slipway.compiler.plan import PlannedGraph, plan_graph
from slipway.compiler.precision import check_codes, check_overrides, settle_gate
from slipway.compiler.progress import Progress
from slipway.compiler.report import BuildReport, Memory, Prediction
from slipway.compiler.segments import compile_segments
from slipway.compiler.target import ACTIVATION_FACTORS, CPU_ISAS, GPUS, Gpu, Target
from slipway.compiler.toolchain import compiler_version
from slipway.compiler.version import source_digest, version
from slipway.compiler.weights import PackedFile, leaf_names, pack_weights, weight_parts
from slipway.passes.pipeline import passes_for, run_passes
from slipway.plugins.linear.plugin import LinearPlugin
from slipway.plugins.paged_attention.arguments import BLOCK_SIZE
from slipway.plugins.plugin import Kernel
from slipway.quantization import formats
from slipway.recipes.schema import Recipe
from slipway.runtime import manifest
from slipway.runtime.machine import available_bytes, cpu_flags, usable_cores

LOGIT_ROWS_PER_SEQUENCE = 4  # so that a step can verify drafts of every sequence
NUMBERS_OF_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # as configs call them
INPUT_ALIGNMENT = 16  # bytes, of a GPU kernel's inputs
STAGES = ("capture", "plan", "compile kernels", "pack weights", "write the engine", "verify", "load")


@dataclass(frozen=True)
class Build:
    """One build: what every stage reads."""

    recipe: Recipe
    checkpoint: Checkpoint
    out: pathlib.Path
    target: Target
    limits: manifest.Limits
    cache: StageCache
    identities: Identities
    progress: Progress


def build(recipe: Recipe, checkpoint: pathlib.Path, out: pathlib.Path, progress: Progress, why: bool = False, dry_run: bool = False) -> BuildReport:
    """Builds and publishes the engine directory `out`; with dry_run, only says what would be done."""
    directory.check_destination(out)
    cache_bytes = env.cache_bytes()
    compiler_version()
    loaded = Checkpoint(checkpoint)
    check_inputs(recipe, loaded)
    target = target_of(recipe)
    unverified = verify.declined(recipe, loaded)
    if not unverified:
        check_runs_here(recipe, target)
    cache = StageCache(env.cache_dir(), str(out.resolve()))
    job = Build(recipe, loaded, out, target, limits_of(recipe), cache, Identities(loaded, env.cache_dir()), progress)
    progress.expect(STAGES[:2] if dry_run else STAGES)
    try:
        planned = _plan(job)
        job = dataclasses.replace(job, recipe=settle_gate(recipe, planned.graph))
        return _predict(job, planned, why) if dry_run else _make(job, planned, why, unverified)
    finally:
        job.identities.save()
        if not dry_run:
            cache.close()
            eviction.evict(cache.root, cache_bytes)


def check_inputs(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Raises UserError for a checkpoint and recipe whose engine the runtime would refuse."""
    for name in NUMBERS_OF_EXPERTS:
        if isinstance(count := getattr(checkpoint.config, name, None), int) and count > 1:
            raise UserError(f"{checkpoint.directory / 'config.json'}: {name}", f"a mixture of {count} experts", "a dense model")
    tokenizer_files.check(checkpoint)
    tokenizer_files.default_sampling(checkpoint, recipe.sampling)
    longest = checkpoint.max_positions
    if longest is not None and recipe.limits.max_sequence_length > longest:
        raise recipe.error(("limits", "max_sequence_length"), f"{recipe.limits.max_sequence_length} tokens", f"at most {longest}",
                           f"{checkpoint.directory / 'config.json'} says how far the model's positions go, rope scaling included")  # fmt: skip


def target_of(recipe: Recipe) -> Target:
    """The recipe's target, `auto` settled to this machine's strongest instruction set."""
    if recipe.target in GPUS:
        cublas = {"auto": None, "never": 0}.get(recipe.gpu.cublas, recipe.gpu.cublas)
        limits = limits_of(recipe)
        return Target(recipe.target, cublas=cublas, most_rows=max(limits.max_batch_tokens, limits.max_logit_rows))
    isa = host_isa() if recipe.cpu.isa == "auto" else recipe.cpu.isa
    if isa is None:
        raise recipe.error(("cpu", "isa"), f"this processor lacks {', '.join(missing_flags())}", "a processor with AVX2, FMA and F16C")
    return Target(recipe.target, isa)


def check_runs_here(recipe: Recipe, target: Target) -> None:
    """Raises UserError for an engine that could not be compared with its checkpoint here. A GPU is emulated."""
    if target.gpu:
        if missing := [flag for flag in EMULATION_CPU_FLAGS if flag not in cpu_flags()]:
            raise recipe.error(("target",), f"this CPU lacks {', '.join(missing)}, which emulating a GPU takes", None, "--set verify.when=never builds without the check")
        return
    if target.isa not in host_isas():
        missing = ", ".join(missing_flags(target.isa))
        raise recipe.error(("cpu", "isa"), f"{target.isa}: this CPU lacks {missing}, and the engine is to be verified on it",
                           f"auto, or one of {', '.join(host_isas())}",
                           "build on a machine like the one that serves; --set verify.when=never builds without the check")  # fmt: skip


def limits_of(recipe: Recipe) -> manifest.Limits:
    stated = recipe.limits
    logit_rows = min(stated.max_batch_tokens, LOGIT_ROWS_PER_SEQUENCE * stated.max_sequences)
    return manifest.Limits(stated.max_sequence_length, stated.max_batch_tokens, stated.max_sequences, logit_rows)


def _plan(job: Build) -> PlannedGraph:
    graph = _captured(job)
    with job.progress.stage("plan"):
        check_overrides(job.recipe, choose_formats(graph, job.recipe))
        check_codes(job.recipe, graph)
        graph = run_passes(graph, passes_for(gpu=job.target.gpu is not None))
        choose_formats(graph, job.recipe)
        planned = plan_graph(graph, job.target)
    if job.target.gpu:
        check_gpu_plan(job.recipe, planned, job.target.gpu)
        check_activations(job.recipe, planned)
    return planned


def check_activations(recipe: Recipe, planned: PlannedGraph) -> None:
    """Raises UserError for a recipe with activations that no linear has in any step, for the accuracy it would let through."""
    wanted = recipe.precision.activations
    matmuls = [(launch, launch.matmul) for kernel in planned.kernels() for launch in kernel.launches if launch.matmul]
    if wanted != "bf16" and not any(m.factors == ACTIVATION_FACTORS[wanted] and l.min_rows <= recipe.limits.max_batch_tokens for l, m in matmuls):
        raise recipe.error(("precision", "activations"), f"no linear has {wanted} activations in steps of up to {recipe.limits.max_batch_tokens} tokens",
                           "a linear that cuBLASLt multiplies", "activations: bf16; or gpu.cublas: 17, which gives cuBLASLt steps of 17 tokens and more, however small the linear is")


def check_gpu_plan(recipe: Recipe, planned: PlannedGraph, gpu: Gpu) -> None:
    """Raises UserError for a plan that a GPU cannot run: it has no segments, reads 16 bytes at a time, and its blocks have so much memory."""
    found = [f"no kernel for {name}: {why}" for name, why in planned.declined.items()]
    for step in planned.steps:
        if any(view.column * planned.storage[view.value].itemsize % INPUT_ALIGNMENT for view in step.inputs):
            found.append(f"no kernel for {step.name}: its input begins between two boundaries of {INPUT_ALIGNMENT} bytes")
        for launch in step.kernel.launches if step.kernel else ():
            if launch.shared_bytes > gpu.shared_bytes:
                found.append(f"{step.name} takes {launch.shared_bytes} bytes of shared memory, a block of {recipe.target} has {gpu.shared_bytes}")
    if found:
        raise recipe.error(("target",), "; ".join(found[:3]), "a model whose every op has a kernel", "target: cpu runs other ops in ONNX Runtime")


def _captured(job: Build) -> Graph:
    parts = {
        "config": digest(job.checkpoint.config.to_json_string()),
        "tensors": digest(str([(name, job.checkpoint.info(name), job.checkpoint.order_of(name)) for name in sorted(job.checkpoint)])),
        "max_sequence_length": str(job.limits.max_sequence_length),
        "slipway": source_digest("compiler", "plugins"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    with job.progress.stage("capture") as stage:
        def make(out: pathlib.Path) -> None:
            graph = capture(job.checkpoint, job.limits, lambda what: stage.advance(0, what))
            out.write_text(graph_json.dumps(graph))

        return graph_json.loads(job.cache.fetch("graphs", job.recipe.model, parts, make).read_text())


def choose_formats(graph: Graph, recipe: Recipe) -> set[str]:
    """Writes each linear's weight format and activations, and each attention's KV format, into its metadata. -> the linears' module paths"""
    seen: set[str] = set()
    for node in graph.nodes:
        if node.target is torch.ops.slipway.paged_attention.default:
            node.meta["kv_format"] = formats.KV_FORMATS[recipe.precision.kv_cache]
        if not is_op(node, *LinearPlugin.ops):
            continue
        weights = [n for n in node.args[1:3] if isinstance(n, torch.fx.Node) and n.meta["val"].ndim == 2]
        if not all(map(graph.is_constant, weights)):
            continue
        modules = {module for weight in weights for module in _modules(node, weight)}
        seen |= modules
        wanted = {formats.parse(*recipe.precision.of(module)) for module in modules}
        if len(wanted) > 1:
            raise InternalError(f"{node.name} merges weights of different formats: {', '.join(map(str, wanted))}")
        node.meta["weight_format"] = wanted.pop()
        node.meta["activations"] = "bf16" if modules == {"lm_head"} else recipe.precision.activations
    return seen


def _modules(node: torch.fx.Node, weight: torch.fx.Node) -> set[str]:
    """Module paths of the linears behind a weight; a tied LM head goes by the node's own path."""
    if str(node.meta.get("path", "")).endswith("lm_head"):
        return {"lm_head"}
    return {name.removesuffix(".weight") for name in leaf_names(weight) if not name.endswith(".order")}


def num_blocks_of(job: Build) -> int:
    """KV blocks of the recipe's kv_cache_tokens; auto: every sequence at full length."""
    stated = job.recipe.limits.kv_cache_tokens
    if stated != "auto":
        return math.ceil(stated / BLOCK_SIZE)
    return job.limits.max_sequences * math.ceil(job.limits.max_sequence_length / BLOCK_SIZE)


def _block_bytes(planned: PlannedGraph) -> int:
    """Of one KV block, over all layers."""
    return sum(kernel.kv_block_bytes for kernel in planned.kernels())


def _memory(job: Build, planned: PlannedGraph, weight_bytes: int) -> Memory:
    """Of the engine as this machine would load it now."""
    block_bytes, activations = _block_bytes(planned), lay_out(planned, job.limits).arena_bytes
    cache = manifest.KvCache(1, BLOCK_SIZE, block_bytes, num_blocks_of(job))
    if job.recipe.limits.kv_cache_tokens == "auto":
        blocks = cache.blocks_within(available_bytes() - weight_bytes - activations, job.limits)
    else:
        blocks = cache.num_blocks
    return Memory(weight_bytes, blocks * block_bytes, blocks * BLOCK_SIZE, activations)


def _predict(job: Build, planned: PlannedGraph, why: bool) -> BuildReport:
    kernels = planned.kernels()
    stages = [*job.cache.records, job.cache.would_run("kernels", f"library {job.target}", library_parts(kernels, job.target))]
    stages += [job.cache.would_run("weights", w.key, weight_parts(planned.graph, w, job.identities)) for w in planned.weights()]
    memory = _memory(job, planned, sum(w.bytes for w in planned.weights()))
    return BuildReport(job.out, True, why, memory, _predictions(job, kernels), stages, _segment_reasons(planned),
                       has_tokenizer=tokenizer_files.has_tokenizer(job.checkpoint))  # fmt: skip


def _predictions(job: Build, kernels: list[Kernel]) -> list[Prediction]:
    """By this machine's limits, or by those of the cards of the target."""
    weight_bytes, most = sum(k.cost.weight_bytes for k in kernels), job.limits.max_sequences

    def tokens_per_s(sequences: int, seconds: Callable[[float, float], float]) -> float:
        flops = sequences * sum(k.cost.token_flops for k in kernels)
        return sequences / seconds(weight_bytes + sequences * sum(k.cost.token_bytes for k in kernels), flops)

    if not job.target.gpu:
        limits = measure_limits(None if job.recipe.cpu.threads == "auto" else job.recipe.cpu.threads)
        return [Prediction(tokens_per_s(1, limits.seconds), tokens_per_s(most, limits.seconds), most, "this machine's", limits)]

    def launches(sequences: int) -> int:
        return sum(launch.takes_part(sequences, sequences) for kernel in kernels for launch in kernel.launches)

    return [
        Prediction(*(tokens_per_s(n, functools.partial(card.seconds, launches=launches(n))) for n in (1, most)), most, f"{card.name}'s", card)
        for card in cards_for(job.target.kind)
    ]


def _segment_reasons(planned: PlannedGraph) -> dict[str, str]:
    return {step.name: planned.declined[step.nodes[0].name] for step in planned.steps if not step.kernel}


def _make(job: Build, planned: PlannedGraph, why: bool, unverified: str | None) -> BuildReport:
    """unverified: why the engine is not compared with its checkpoint; None where it is."""
    kernels = planned.kernels()
    with job.progress.stage("compile kernels", total=len({k.symbol for k in kernels}), unit="kernels") as stage:
        library = compile_library(kernels, job.target, job.cache, usable_cores(), stage.advance)
        cubins = compile_cubins(kernels, job.target.gpu, job.cache, usable_cores(), lambda _: None) if job.target.gpu else {}
    with job.progress.stage("pack weights", total=len(planned.weights()), unit="weights") as stage:
        packed = pack_weights(planned, job.checkpoint, job.identities, job.cache, usable_cores(), stage.advance)
        segments = compile_segments(planned, job.checkpoint, job.identities, job.cache)
    with directory.publishing(job.out) as draft:
        with job.progress.stage("write the engine"):
            described = _write(job, planned, draft, library, cubins, packed, segments)
        with job.progress.stage("verify"):
            accuracy = None if unverified else verify.verify(job.recipe, job.checkpoint, draft, job.cache, job.identities)
        if accuracy:
            verify.write(accuracy, draft)
            files = described.files | {"verify.json": manifest.hash_file(draft / "verify.json")}
            dataclasses.replace(described, files=files).write(draft)
        with job.progress.stage("load"):
            verify.try_loading(draft, job.recipe.target)
    memory = _memory(job, planned, sum({p.digest: p.bytes for p in packed.values()}.values()))
    return BuildReport(job.out, False, why, memory, [], job.cache.records, _segment_reasons(planned), accuracy, unverified,
                       has_tokenizer=tokenizer_files.has_tokenizer(job.checkpoint))  # fmt: skip


def _write(job: Build, planned: PlannedGraph, draft: pathlib.Path, library: pathlib.Path, cubins: dict[str, pathlib.Path],
           packed: dict[tuple, PackedFile], segments: dict[int, pathlib.Path]) -> manifest.Manifest:
    """Everything but verify.json, which is about what is written here."""
    library_name = f"emulated-{job.target}.so" if job.target.gpu else f"host-{job.target.isa}.so"
    directory.place(library, draft / "kernels" / library_name)
    for symbol, path in cubins.items():
        directory.place(path, draft / "kernels" / f"{symbol}.cubin")
    for file in packed.values():
        directory.place(file.path, draft / "weights" / f"{file.digest}.bin")
    for path in segments.values():
        directory.place(path, draft / "segments" / f"{path.name}.onnx")
    tokenizer = tokenizer_files.write_tokenizer(job.checkpoint, draft / "tokenizer")
    weights = {key: manifest.WeightRef(file.name, f"{file.digest}.bin", file.bytes) for key, file in packed.items()}
    names = {number: f"{path.name}.onnx" for number, path in segments.items()}
    plan = make_plan(planned, job.limits, num_blocks_of(job), library_name, weights, names)
    _write_explanation(plan, draft)
    described = manifest.Manifest(
        model=job.recipe.model,
        target=_described_target(job.target),
        limits=job.limits,
        plan=plan,
        files=_files(draft, packed),
        tokenizer=tokenizer,
        deterministic=job.recipe.runtime.deterministic,
        default_sampling=tokenizer_files.default_sampling(job.checkpoint, job.recipe.sampling),
        recipe=job.recipe.resolved(),
        model_config=json.loads(job.checkpoint.config.to_json_string()),
        slipway_version=version(),
    )
    described.write(draft)
    return described


def _described_target(target: Target) -> manifest.Target:
    if target.gpu:
        return manifest.Target(target.kind, target.gpu.arch, EMULATION_CPU_FLAGS)
    return manifest.Target(target.kind, target.isa, CPU_ISAS[target.isa][0])


def _files(draft: pathlib.Path, packed: dict[tuple, PackedFile]) -> dict[str, manifest.File]:
    """Every file by its path in the draft; what packing has hashed is not read again."""
    weights = {f"weights/{file.digest}.bin": manifest.File(file.bytes, file.digest) for file in packed.values()}
    others = sorted(path for path in draft.rglob("*") if path.is_file() and path.parent.name != "weights")
    return weights | {str(path.relative_to(draft)): manifest.hash_file(path) for path in others}


def _write_explanation(plan: manifest.Plan, draft: pathlib.Path) -> None:
    steps = [{"step": step.name, "op": step.op, **step.cost} for step in plan.steps]
    (draft / "explain.json").write_text(json.dumps(steps, indent=1) + "\n")
