"""The emulation of AMX that kernels are tested by multiplies as AMX does, and ends a process that breaks AMX's rules."""

import ctypes
import functools
import subprocess

import numpy as np
import pytest
from kernel_harness import CACHE, EMULATED_AMX, IS_EMULATED

pytestmark = pytest.mark.skipif(not IS_EMULATED, reason="emulated on processors with AVX-512 BF16 and without AMX alone")

PROGRAM = r"""
#include "%s"
alignas(64) uint8_t config[64] = {1};
static void use(int c_rows, int a_bytes, int b_rows) {
  for (int t = 0; t < 8; ++t) config[16 + 2 * t] = t == 4 ? a_bytes : 64, config[48 + t] = t < 6 ? c_rows : b_rows;
  _tile_loadconfig(config);
}
extern "C" void bytes(const void* a, const void* b, void* c, int rows, int a_bytes) {
  use(rows, a_bytes, a_bytes / 4);
  _tile_zero(0);
  _tile_loadd(4, a, a_bytes);
  _tile_loadd(6, b, 64);
  _tile_dpbsud(0, 4, 6);
  _tile_dpbusd(0, 4, 6);
  _tile_stored(0, c, 64);
}
extern "C" void pairs(const void* a, const void* b, void* c, int rows) {
  use(rows, 64, 16);
  _tile_zero(0);
  _tile_loadd(4, a, 64);
  _tile_loadd(6, b, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_stored(0, c, 64);
}
int main(int, char** argv) {
  switch (*argv[1]) {
    case 'u': _tile_zero(0); break;
    case 'r': config[2] = 1, use(16, 64, 16); break;
    case 'l': use(17, 64, 16); break;
    case 'f': use(16, 32, 16), _tile_dpbsud(0, 4, 6); break;
    case 's': use(16, 64, 16), _tile_dpbsud(0, 0, 6); break;
  }
}
"""
BROKEN = {
    "unconfigured": "a tile that is not configured",
    "reserved": "reserved bytes are not zero",
    "large": "a tile larger than 16 rows",
    "factors": "factors that do not fit",
    "same": "the same tile twice",
}


@functools.cache
def built(kind):
    CACHE.mkdir(exist_ok=True)
    source, out = CACHE / "emulated_amx.cpp", CACHE / f"emulated_amx.{kind}"
    source.write_text(PROGRAM % EMULATED_AMX)
    flags = ["-shared", "-fPIC"] if kind == "so" else []
    subprocess.run(["g++", "-std=c++20", "-O2", "-march=cooperlake", *flags, str(source), "-o", str(out)], check=True)
    return out


@pytest.mark.parametrize("broken", BROKEN)
def test_what_amx_does_not_allow_ends_the_process(broken):
    done = subprocess.run([built("program"), broken], capture_output=True, text=True)
    assert done.returncode < 0 and BROKEN[broken] in done.stderr


def address(array):
    return array.ctypes.data_as(ctypes.c_void_p)


@pytest.mark.parametrize("rows, depth", [(16, 64), (5, 64), (16, 32), (1, 8)])
def test_products_of_bytes(rows, depth):
    numbers = np.random.default_rng(0)
    a, b = numbers.integers(0, 256, (rows, depth), np.uint8), numbers.integers(0, 256, (depth // 4, 16, 4), np.uint8)
    c = np.zeros((rows, 16), np.int32)
    ctypes.CDLL(str(built("so"))).bytes(address(a), address(b), address(c), rows, depth)
    columns = b.transpose(0, 2, 1).reshape(depth, 16)
    signed = lambda x: x.view(np.int8).astype(np.int32)  # noqa: E731
    assert (c == signed(a) @ columns.astype(np.int32) + a.astype(np.int32) @ signed(np.ascontiguousarray(columns))).all()


def test_products_of_bf16():
    numbers = np.random.default_rng(0)
    a, b = numbers.standard_normal((7, 32), np.float32), numbers.standard_normal((16, 16, 2), np.float32)
    a, b = (x.view(np.uint32) & 0xFFFF0000 for x in (a, b))
    c = np.zeros((7, 16), np.float32)
    halves = [np.ascontiguousarray((x >> 16).astype(np.uint16)) for x in (a, b)]
    ctypes.CDLL(str(built("so"))).pairs(address(halves[0]), address(halves[1]), address(c), 7)
    np.testing.assert_allclose(c, a.view(np.float32) @ b.view(np.float32).transpose(0, 2, 1).reshape(32, 16), rtol=1e-5, atol=1e-5)
