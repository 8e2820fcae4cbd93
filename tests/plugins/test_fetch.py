"""What paged attention asks for ahead changes no result: here each line is watched."""

import ctypes
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import DRIVER, PLUGINS

from slipway.compiler import env
from slipway.compiler.kernels import COMMON_FLAGS
from slipway.compiler.machine import host_isa
from slipway.compiler.target import CPU_ISAS

LINE = 64


@pytest.fixture(scope="module", params=["lines", "pages"])
def fetched(request, tmp_path_factory):
    """fetched(heads, offset, bytes, steps, taken): the addresses asked for. pages: as on AMX."""
    library = tmp_path_factory.mktemp("fetched") / "fetched.so"
    flags = ["-D__AMX_TILE__" if request.param == "pages" else "-U__AMX_TILE__"]
    includes = ["-I", str(PLUGINS / "include"), "-I", str(PLUGINS)]
    subprocess.run([*env.cxx(), *COMMON_FLAGS, "-fvisibility=default", "-shared", *CPU_ISAS[host_isa()][1], *flags, *includes,
                    str(DRIVER.with_name("fetched.cpp")), "-o", str(library)], check=True)  # fmt: skip
    function = ctypes.CDLL(str(library)).fetched
    function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_void_p, ctypes.c_int, *[ctypes.c_int64] * 4, ctypes.c_void_p, ctypes.c_int64]

    def call(heads, offset, size, steps, taken):
        asked = (ctypes.c_uint64 * 4096)()
        count = function((ctypes.c_uint64 * len(heads))(*heads), len(heads), offset, size, steps, taken, asked, len(asked))
        return list(asked[:count])

    call.by_pages = request.param == "pages"
    return call


def wanted(heads, offset, size, by_pages):
    """by_pages: of each page's lines the first eight."""
    wanted = []
    for begin in (head + offset for head in heads):
        pages = {}
        for line in range(begin, begin + size, LINE):
            pages.setdefault(line // 4096, []).append(line)
        wanted += [line for lines in pages.values() for line in (lines[:8] if by_pages else lines)]
    return wanted


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 16), st.integers(0, 40), st.integers(1, 140), st.integers(1, 300))
def test_every_line_once_and_in_time(fetched, count, skipped, lines, steps):
    heads = [(number * 7 + 1) << 20 for number in range(count)]
    want = wanted(heads, skipped * LINE, lines * LINE, fetched.by_pages)
    assert fetched(heads, skipped * LINE, lines * LINE, steps, steps) == want
    assert fetched(heads, skipped * LINE, lines * LINE, steps, 3 * steps) == want  # and none afterwards
    portion = -(-len(want) // steps)
    for taken in range(0, steps, max(1, steps // 4)):  # evenly
        assert fetched(heads, skipped * LINE, lines * LINE, steps, taken) == want[: taken * portion]


def test_nothing_without_steps(fetched):
    assert fetched([1 << 20], 0, 4096, 0, 5) == []
