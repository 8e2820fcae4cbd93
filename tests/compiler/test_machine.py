"""The machine's limits are measured, and a step's time follows from the tighter one."""

from slipway.compiler import machine


def test_limits_are_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("SLIPWAY_CACHE", str(tmp_path))
    limits = machine.measure_limits(threads=1)
    assert limits.threads == 1
    assert 1e8 < limits.read_bytes_per_s < 1e12
    assert 1e8 < limits.flops_per_s < 1e14


def test_the_tighter_limit_counts():
    limits = machine.MachineLimits(threads=1, read_bytes_per_s=100, flops_per_s=10)
    assert (limits.seconds(200, 1), limits.seconds(1, 50)) == (2, 5)


def test_the_machine_has_a_name_and_memory():
    total, available = machine.memory_bytes()
    assert machine.processor() and machine.cores() >= 1 and 0 < available <= total
