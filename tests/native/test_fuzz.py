"""The scheduling core under random schedules, built with AddressSanitizer and UBSan. SECONDS of it; more by hand."""

import subprocess

import pytest
import sanitized

SECONDS = 10


@pytest.fixture(scope="module")
def fuzz():
    return sanitized.executable("fuzz_scheduler", [sanitized.HERE / "fuzz_scheduler.cpp", *sanitized.native(sanitized.CORE)])


def test_random_schedules(fuzz):
    result = subprocess.run([fuzz, str(SECONDS)], capture_output=True, text=True, timeout=20 * SECONDS)
    assert result.returncode == 0, result.stderr
    print(result.stdout)
