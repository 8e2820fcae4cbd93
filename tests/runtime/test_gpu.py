"""What is said of engines for GPUs before anything runs: damaged plans, devices asked for, GPUs that do not fit."""

import re
from dataclasses import replace

import pytest
from slipway.runtime import gpu
from slipway.runtime.errors import EngineError, MachineError
from slipway.runtime.manifest import Extent, Launch, Manifest, Target
from slipway.runtime.manifest_checks import check_manifest

GRID = (Extent("rows", 1, 1, 0), Extent(None, 1, 1, 1), Extent(None, 1, 1, 1))
LAUNCH = Launch("run", 128, GRID, 0, 1, None, 1)
SM90, CPU = Target("sm90", "sm_90", ()), Target("cpu", "avx2", ())


@pytest.fixture
def manifest(toy):
    """Of an engine for a GPU whose kernels have one launch each; only names and numbers matter here."""
    host = Manifest.read(toy())
    kernels = {symbol: replace(needs, image=f"{symbol}.cubin", launches=(LAUNCH,)) for symbol, needs in host.plan.kernels.items()}
    files = host.files | {f"kernels/{symbol}.cubin": next(iter(host.files.values())) for symbol in kernels}
    return replace(host, target=SM90, plan=replace(host.plan, kernels=kernels), files=files)


def with_kernels(manifest, **changes):
    plan = manifest.plan
    return replace(manifest, plan=replace(plan, kernels={symbol: replace(needs, **changes) for symbol, needs in plan.kernels.items()}))


def with_launch(manifest, **changes):
    return with_kernels(manifest, launches=(replace(LAUNCH, **changes),))


def test_a_sound_plan_passes(manifest):
    check_manifest(manifest, "engine.json")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: with_kernels(m, image=None), "image: None, expected a file below kernels/, as for sm90"),
        (lambda m: replace(m, plan=replace(m.plan, drawn=m.plan.logits)), "plan.drawn: f32 for sm90, expected i32, for a GPU"),
        (lambda m: with_kernels(m, image="x.cubin"), "'kernels/x.cubin' is not among the files"),
        (lambda m: with_kernels(m, image="../x"), "file name 'kernels/../x'"),
        (lambda m: with_kernels(m, counters=1 << 61), "counters: 2305843009213693952, expected 0..1048576"),
        (lambda m: with_kernels(m, counters=-1), "counters: -1"),
        (lambda m: with_kernels(m, launches=()), "launches: none for 1 rows, expected one for every number of rows"),
        (lambda m: with_launch(m, min_rows=3), "launches: none for 1 rows"),
        (lambda m: with_launch(m, max_rows=3), "launches: none for 4 rows"),
        (lambda m: with_launch(m, min_new_tokens=2), "launches: none for 1 rows"),
        (lambda m: with_launch(m, min_sequences=2), "launches: none for 1 rows"),
        (lambda m: with_launch(m, max_sequences=2), "launches: none for 1 rows"),
        (lambda m: with_launch(m, function="rm -rf"), "function: 'rm -rf', expected a C identifier"),
        (lambda m: with_launch(m, threads=100), "threads: 100, expected whole warps, at most 1024"),
        (lambda m: with_launch(m, threads=2048), "threads: 2048"),
        (lambda m: with_launch(m, shared_bytes=1 << 20), "shared_bytes: 1048576, expected 0..232448"),
        (lambda m: with_launch(m, grid=GRID[:2]), "grid: 2 extents, expected three"),
        (lambda m: with_launch(m, grid=(Extent("weeks", 1, 1, 0), *GRID[1:])), "grid: 'weeks'"),
        (lambda m: with_launch(m, grid=(Extent("rows", 1, 0, 0), *GRID[1:])), "per: 0"),
        (lambda m: with_launch(m, grid=(*GRID[:2], Extent("rows", 1 << 20, 1, 0))), "grid: .* blocks, expected 1..65535"),
        (lambda m: with_launch(m, grid=(*GRID[:2], Extent(None, 1, 1, 0))), "grid: 0 blocks"),
        (lambda m: replace(m, target=Target("smile", "", ())), "target.kind: 'smile', expected cpu, sm80"),
        (lambda m: replace(m, target=CPU), "image: '.*cubin', expected none, as for cpu"),
    ],
)
def test_a_damaged_plan_is_refused(manifest, change, message):
    with pytest.raises(EngineError, match=message):
        check_manifest(change(manifest), "engine.json")


def test_inputs_begin_where_kernels_read_sixteen_bytes(manifest):
    steps = list(manifest.plan.steps)
    number = next(i for i, step in enumerate(steps) if step.inputs)
    moved = replace(steps[number].inputs[0], offset=steps[number].inputs[0].offset + 4)
    steps[number] = replace(steps[number], inputs=(moved, *steps[number].inputs[1:]))
    with pytest.raises(EngineError, match=r"inputs\[0\]"):
        check_manifest(replace(manifest, plan=replace(manifest.plan, steps=tuple(steps))), "engine.json")


@pytest.mark.parametrize(
    "text, asked, target, seed",
    [("", None, SM90, None), ("", True, SM90, 0), ("emulated", None, SM90, 0), ("emulated:7", None, SM90, 7), ("emulated:7", False, SM90, None),
     ("emulated:7", True, SM90, 7), ("emulated", None, CPU, None)],
)  # fmt: skip
def test_who_asks_for_emulation(monkeypatch, text, asked, target, seed):
    monkeypatch.setenv(gpu.VARIABLE, text)
    assert gpu.emulation(target, asked) == seed


@pytest.mark.parametrize("text", ["cuda", "emulated:", "emulated:x", "emulated:-1", "emulate"])
def test_other_devices_are_refused(monkeypatch, text):
    monkeypatch.setenv(gpu.VARIABLE, text)
    with pytest.raises(EngineError, match="SLIPWAY_DEVICE: .*, expected emulated, or emulated:SEED to shuffle threads"):
        gpu.emulation(SM90, None)


def test_a_cpu_engine_is_not_emulated():
    with pytest.raises(EngineError, match="built for cpu, expected an engine for a GPU; leave --emulate out"):
        gpu.emulation(CPU, True)


@pytest.mark.parametrize(
    "kind, capability, hint",
    [("sm90", 80, "build it again with target: sm80"), ("sm80", 90, "build it again with target: sm90"), ("sm89", 86, "build it again with target: sm86"),
     ("sm80", 75, "no target fits it; --emulate"), ("sm100", 120, "build it again with target: sm120")],
)  # fmt: skip
def test_another_gpu_is_refused(monkeypatch, kind, capability, hint):
    monkeypatch.setattr(gpu, "_first_gpu", lambda *_: ("a card", capability, 0))
    with pytest.raises(MachineError, match=f"built for {kind}; a card is sm{capability}.*{re.escape(hint)}"):
        gpu.check(Target(kind, "", ()), "engine")


@pytest.mark.parametrize("kind, capability", [("sm80", 80), ("sm80", 86), ("sm80", 89), ("sm86", 89), ("sm90", 90), ("sm100", 103), ("sm120", 121)])
def test_later_gpus_of_a_generation_run_it(monkeypatch, kind, capability):
    monkeypatch.setattr(gpu, "_first_gpu", lambda *_: ("a card", capability, 0))
    gpu.check(Target(kind, "", ()), "engine")


def test_the_rate_of_a_copy():
    assert gpu.copy_bytes_per_s(emulated=0, size=1 << 20) > 1e6
