"""Toy engines: their kernels are compiled once a session."""

import itertools
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "toy"))  # for `import toy_engine` under --import-mode=importlib


@pytest.fixture(scope="session")
def toy_library(tmp_path_factory):
    from toy_engine import compile_kernels

    return compile_kernels(tmp_path_factory.mktemp("kernels") / "toy.so")


@pytest.fixture
def toy(toy_library, tmp_path):
    """toy(**fields of Toy): the path of an engine directory."""
    from toy_engine import Toy

    numbers = itertools.count()
    return lambda **options: Toy(**options).write(tmp_path / f"engine{next(numbers)}", toy_library)
