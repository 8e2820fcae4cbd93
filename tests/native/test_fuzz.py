"""The scheduling core under random schedules, and the engine over an executor that draws, with AddressSanitizer and UBSan."""

import subprocess

import pytest
import sanitized

SECONDS = 10  # more by hand
CROWDS = 40


@pytest.fixture(scope="module")
def fuzz():
    return sanitized.executable("fuzz_scheduler", [sanitized.HERE / "fuzz_scheduler.cpp", *sanitized.native(sanitized.CORE)])


def test_random_schedules(fuzz):
    result = subprocess.run([fuzz, str(SECONDS)], capture_output=True, text=True, timeout=20 * SECONDS)
    assert result.returncode == 0, result.stderr
    print(result.stdout)


def test_crowds_of_an_engine_that_begins_steps_ahead():
    names = [name for name in sanitized.ENGINE if name not in ("executor", "host_executor", "library", *sanitized.OF_GPU)]
    drive = sanitized.executable("drive_drawing", [sanitized.HERE / "drive_drawing.cpp", *sanitized.native([*names, "memory"])])
    result = subprocess.run([drive, str(CROWDS)], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
