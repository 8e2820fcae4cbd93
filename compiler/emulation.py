"""CUDA sources of a plan's kernels  ->  one shared object that runs them on a CPU, for the emulation of a GPU."""

from __future__ import annotations

FLAGS = ("-std=c++20", "-O2", "-fPIC", "-mavx2", "-mfma", "-fno-math-errno", "-ffp-contract=off", "-Wno-unknown-pragmas")
