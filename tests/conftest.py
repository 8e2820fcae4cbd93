"""The golden-text fixture: expected output lives in tests/golden, `pytest --update-golden` writes it anew.

And the tiny random checkpoints of tests/tiny, each made once a session.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
sys.path.append(str(Path(__file__).parent / "tiny"))  # for `import tiny_models` under --import-mode=importlib

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: programs that tests start would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write tests/golden from what the tests saw")
    parser.addoption("--gpu", action="store_true", help="run what -m gpu selects on the GPU that is here, not in emulation")


def pytest_configure(config):
    if config.getoption("--gpu"):
        os.environ["SLIPWAY_TESTS_ON_GPU"] = "1"


@pytest.fixture(scope="session", autouse=True)
def reports_go_with_the_tests(tmp_path_factory):
    """What is left behind on purpose, such as the traceback of a bug or the graph that a pass broke."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("reports")))
        yield


@pytest.fixture
def golden(request):
    """golden(name, text): text equals tests/golden/<name>."""

    def check(name, text):
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"no golden file {path}: run pytest --update-golden and read what it wrote"
        assert text == path.read_text(), f"differs from {path}: if the change is meant, run pytest --update-golden"

    return check


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """tiny(family): the tiny_models.Tiny of that family."""
    made = {}

    def get(family):
        from tiny_models import Tiny

        return made.get(family) or made.setdefault(family, Tiny(family, tmp_path_factory.mktemp(family)))

    return get
