"""A file of the checkpoint is read once for its hash, by whatever number of threads and builds, until it changes."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from slipway.compiler import identity
from slipway.compiler.cache import digest


@pytest.fixture
def identities(tmp_path, monkeypatch):
    """identities() -> those of a new build; identities.read lists the files it had to read."""
    read = []

    def slow_digest(path):
        read.append(path.name)
        time.sleep(0.05)
        return digest(path.read_bytes())

    def make():
        return identity.Identities(None, tmp_path / "cache")

    monkeypatch.setattr(identity, "file_digest", slow_digest)
    make.read = read
    return make


def test_threads_share_one_reading(identities, tmp_path):
    (tmp_path / "shard").write_bytes(b"weights")
    build = identities()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(build.file, [tmp_path / "shard"] * 8)) == {digest(b"weights")}
    assert identities.read == ["shard"]


def test_the_next_build_remembers(identities, tmp_path):
    (tmp_path / "shard").write_bytes(b"weights")
    for _ in range(2):
        build = identities()
        build.file(tmp_path / "shard")
        build.save()
    assert identities.read == ["shard"]


def overwrite(path):
    """In place, the time put back."""
    status = path.stat()
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def exchange(path):
    status = path.stat()
    path.with_name("new").write_bytes(b"WEIGHTS")
    os.utime(path.with_name("new"), ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(path.with_name("new"), path)


@pytest.mark.parametrize("change", [overwrite, exchange])
def test_a_changed_file_is_read_again_whatever_its_time_says(identities, tmp_path, change):
    (tmp_path / "shard").write_bytes(b"weights")
    build = identities()
    build.file(tmp_path / "shard")
    time.sleep(0.02)  # longer than the file system's tick
    change(tmp_path / "shard")
    assert build.file(tmp_path / "shard") == digest(b"WEIGHTS")
