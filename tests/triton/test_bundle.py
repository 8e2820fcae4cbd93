"""What is missing on a machine is said in one sentence with the line that mends it."""

import importlib.metadata
import importlib.util
import os
import sys

import pytest

from slipway.runtime.errors import EngineError
from slipway.runtime.triton import bundle


def test_this_machine_has_all(tmp_path):
    found = bundle.find()
    found.write_backends(tmp_path)
    assert os.access(tmp_path / "python/triton_python_backend_stub", os.X_OK)
    assert found.environment()["PATH"].startswith(os.path.dirname(sys.executable))


@pytest.mark.parametrize(
    ("missing", "hint"),
    [
        (["libpython3.11.so.1.0", "libexpat.so.1"], f"apt-get install -y libexpat1 {bundle.PACKAGES['libpython']}"),
        (["libexpat.so.1"], "this machine lacks libexpat.so.1; apt-get install -y libexpat1"),
        (["libstrange.so.7"], "this machine lacks libstrange.so.7"),
    ],
)
def test_missing_libraries(monkeypatch, missing, hint):
    monkeypatch.setattr(bundle, "missing_libraries", lambda *_: missing)
    with pytest.raises(EngineError) as error:
        bundle.find()
    assert str(error.value).endswith(hint)


def test_no_pytriton(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EngineError, match=r"not installed; install it with: pip install 'slipway\[triton\]'"):
        bundle.find()


def test_numpy_2(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.3.0")
    with pytest.raises(EngineError, match=r"numpy 2.3.0, expected numpy 1.*pip install 'numpy<2'"):
        bundle.find()
