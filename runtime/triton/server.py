"""Runs the bundled tritonserver on a model repository: starts it, waits until it is ready, stops it, leaves nothing.

The server and the stubs it starts are one process group. Their shared memory regions carry a prefix of their own, so
what a killed server leaves behind is found and removed.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from slipway.runtime.errors import EngineError
from slipway.runtime.triton import bundle

POLL_S = 0.05
EXIT_GRACE_S = 2  # after the requests have had their time
KILL_TIMEOUT_S = 5
FAILED_LOAD = re.compile(r"\"failed to load '(.+?)' version \d+: (?:\w+: )*(.*?)(?:\\n\\nAt:|\"$)")
SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Server:
    """`with Server(repository) as server:` gives a ready server; leaving the block stops it.

    A port of 0 is replaced by a free one. load_models: "*" for all; models are loaded and unloaded by call alone, which lets
    one that can serve no more unload itself.
    drain_s: how long a stopping server lets requests in flight finish. progress: called with a line, about once a second.
    """

    repository: Path
    host: str = "127.0.0.1"
    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0
    load_models: tuple[str, ...] = ("*",)
    ready_timeout_s: float = 120
    drain_s: int = 30
    progress: Callable[[str], None] | None = None
    arguments: tuple[str, ...] = ()
    shared_memory_prefix: str = field(init=False, default_factory=lambda: f"slipway_{uuid.uuid4().hex[:12]}_")
    folder: Path | None = field(init=False, default=None)
    process: subprocess.Popen | None = field(init=False, default=None)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def http(self) -> str:
        return f"{self.host}:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"{self.host}:{self.grpc_port}"

    @property
    def metrics(self) -> str:
        return f"{self.host}:{self.metrics_port}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace") if self.folder else ""

    def start(self) -> None:
        """Returns when every model is ready; raises EngineError with the end of the log when one is not."""
        if not Path(self.repository).is_dir():
            raise EngineError(str(self.repository), "no such folder", "a Triton model repository")
        installed = bundle.find()
        self.folder = Path(tempfile.mkdtemp(prefix="slipway-triton-"))
        try:
            installed.write_backends(self.folder / "backends")
            self._take_ports()
            with open(self.folder / "log", "wb") as log:
                self.process = subprocess.Popen(
                    self.command(installed),
                    env=installed.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._wait_ready()
        except BaseException:
            self.stop()
            raise

    def command(self, installed: bundle.Bundle) -> list[str]:
        return [
            str(installed.server),
            f"--model-repository={Path(self.repository).resolve()}",
            f"--backend-directory={self.folder / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory_prefix}",
            *(f"--{kind}-address={self.host}" for kind in ("http", "grpc", "metrics")),
            *(f"--{kind}-port={getattr(self, f'{kind}_port')}" for kind in ("http", "grpc", "metrics")),
            f"--exit-timeout-secs={self.drain_s}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self.load_models),
            *self.arguments,
        ]

    def stop(self) -> None:
        """SIGTERM, at most drain_s for the requests in flight, then SIGKILL to all that is left of the group."""
        try:
            if self.process and self.folder:
                self._end_process(self.process)
        finally:
            for region in self.regions():
                region.unlink(missing_ok=True)
            if self.folder:
                shutil.rmtree(self.folder)
            self.folder = None

    def regions(self) -> list[Path]:
        """Shared memory regions of this server that exist now."""
        return sorted(SHARED_MEMORY.glob(f"{self.shared_memory_prefix}*"))

    def processes(self) -> list[int]:
        """Processes of this server that run now: its own and those of its models."""
        running = [int(path.name) for path in Path("/proc").glob("[0-9]*")] if self.process else []
        return [pid for pid in running if running_group(pid) == self.process.pid]

    def _end_process(self, process: subprocess.Popen) -> None:
        process.terminate()
        try:
            process.wait(self.drain_s + EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            self._tell(f"Triton did not stop in {self.drain_s + EXIT_GRACE_S} s: killing it")
        finally:  # a second Ctrl-C comes here too
            self._kill_group()

    def _kill_group(self) -> None:
        """The models' processes are not our children: nothing tells when they have ended."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:  # the whole group has ended
            return
        self.process.wait()
        limit = time.monotonic() + KILL_TIMEOUT_S
        while self.processes() and time.monotonic() < limit:
            time.sleep(POLL_S)

    def _take_ports(self) -> None:
        """Free ones in the place of 0; all held at once, so that no two are the same. Raises EngineError for one in use, which Triton
        tells behind pages of other text."""
        with contextlib.ExitStack() as held:
            for name in sorted(("http_port", "grpc_port", "metrics_port"), key=lambda name: getattr(self, name) == 0):
                port, listener = getattr(self, name), held.enter_context(socket.socket())
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    listener.bind((self.host, port))
                    listener.listen()
                except OSError as error:
                    raise EngineError("triton", f"port {port} of {self.host}: {error.strerror}", "three free ports; 0 takes one") from None
                setattr(self, name, listener.getsockname()[1])

    def _wait_ready(self) -> None:
        start = told = time.monotonic()
        while not self._is_ready():
            now = time.monotonic()
            if self.process.poll() is not None:
                raise EngineError("triton", f"the server ended with exit code {self.process.returncode}:\n{self._failure()}")
            if now - start > self.ready_timeout_s:
                raise EngineError("triton", f"the server is not ready after {self.ready_timeout_s:.0f} s:\n{self._failure()}")
            if now - told >= 1:
                self._tell(f"starting Triton: {now - start:.0f} s")
                told = now
            time.sleep(POLL_S)
        self._tell(f"Triton is ready after {time.monotonic() - start:.1f} s on {self.http} (HTTP) and {self.grpc} (gRPC)")

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(self.host, self.http_port, timeout=2)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except OSError:  # nothing listens yet
            return False
        finally:
            connection.close()

    def _failure(self) -> str:
        """Why models did not load, or else the end of the log."""
        lines = [line for line in self.log.splitlines() if line.strip()]
        failures = [f"model {found[1]}: {found[2]}" for line in lines if (found := FAILED_LOAD.search(line))]
        return "\n".join(failures or [line[:300] for line in lines[-30:]])

    def _tell(self, line: str) -> None:
        if self.progress:
            self.progress(line)


def running_group(pid: int) -> int | None:
    """The process group; None for a process that has ended, though nobody may have waited for it yet."""
    try:
        state, _, group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(group)
