"""The machine's limits are measured, and a step's time follows from the tighter one."""

import subprocess
import sys

from slipway.compiler import machine
from slipway.runtime import machine as probe


def test_limits_are_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("SLIPWAY_CACHE", str(tmp_path))
    limits = machine.measure_limits(threads=1)
    assert limits.threads == 1
    assert 1e8 < limits.read_bytes_per_s < 1e12
    assert 1e8 < limits.flops_per_s < 1e14


FEW_THREADS = """
import resource
from slipway.compiler import machine
from slipway.compiler.errors import UserError
machine.measure_limits(threads=1)
machine.READ_BYTES = 1 << 21
resource.setrlimit(resource.RLIMIT_AS, (2 << 30,) * 2)  # room for the stacks of some threads
try:
    machine.measure_limits(threads=500)
except UserError as error:
    print(error)
"""


def test_threads_that_cannot_be_had_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SLIPWAY_CACHE", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", FEW_THREADS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("threads: 500 with 2 MiB each cannot be had here")


def test_the_tighter_limit_counts():
    limits = machine.MachineLimits(threads=1, read_bytes_per_s=100, flops_per_s=10)
    assert (limits.seconds(200, 1), limits.seconds(1, 50)) == (2, 5)


def test_the_processor_has_a_name():
    assert machine.processor()


def test_the_compiler_measures_on_the_cores_it_is_granted(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    monkeypatch.setattr(probe, "_cgroups", lambda: iter([tmp_path]))
    monkeypatch.setenv("SLIPWAY_CACHE", str(tmp_path / "cache"))
    assert machine.measure_limits().threads == 1


def test_isas_need_all_their_flags(monkeypatch):
    flags = {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq"}
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset(flags))
    assert machine.host_isas() == ["avx2"] and machine.host_isa() == "avx2" and not machine.missing_flags()
    flags.add("avx512_vnni")
    assert machine.host_isa() == "avx512"
    flags |= {"avx512_bf16", "avx512vbmi"}
    assert machine.host_isas() == ["avx2", "avx512", "avx512_bf16"]
    flags -= {"fma", "avx512f"}
    assert machine.host_isa() is None and machine.missing_flags() == ["fma"]
