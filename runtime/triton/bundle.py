"""Finds the tritonserver inside the nvidia-pytriton wheel and lays out what it needs to run with this Python."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from slipway.runtime.errors import EngineError

INSTALL_HINT = "install it with: pip install 'slipway[triton]'"
PACKAGES = {"libpython": f"libpython3.{sys.version_info[1]}", "libexpat": "libexpat1"}


@dataclass(frozen=True)
class Bundle:
    server: Path  # the executable
    backend: Path  # the Python backend's library and its Python helper
    stub: Path  # the process that runs model.py, built for this Python
    libraries: tuple[Path, ...]  # what the loader must search

    def environment(self) -> dict[str, str]:
        """This process's environment, so changed that the server and its stubs find their libraries and this venv."""
        search = [*map(str, self.libraries), os.environ.get("LD_LIBRARY_PATH", "")]
        path = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        return os.environ | {"LD_LIBRARY_PATH": ":".join(filter(None, search)), "PATH": ":".join(filter(None, path))}

    def write_backends(self, folder: Path) -> None:
        """A backend directory with the stub copied beside the library: Triton takes it from nowhere else."""
        shutil.copytree(self.backend, folder / "python", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(self.stub, folder / "python")


def find() -> Bundle:
    """Raises EngineError, saying what to install, when the wheel or a library it needs is not here."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise EngineError("triton", "nvidia-pytriton is not installed", hint=INSTALL_HINT)
    root = Path(spec.origin).parent
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    bundle = Bundle(
        server=root / "tritonserver/bin/tritonserver",
        backend=root / "tritonserver/backends/python",
        stub=root / "tritonserver/python_backend_stubs" / version / "triton_python_backend_stub",
        libraries=(root.parent / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR"))),
    )
    check(bundle, version)
    return bundle


def check(bundle: Bundle, version: str) -> None:
    if not bundle.server.is_file():
        raise EngineError("triton", f"{bundle.server} is missing", hint=INSTALL_HINT)
    if not bundle.stub.is_file():
        known = ", ".join(sorted(path.name for path in bundle.stub.parent.parent.iterdir()))
        raise EngineError("triton", f"nvidia-pytriton has no stub for Python {version}", f"one of {known}")
    numpy = importlib.metadata.version("numpy")
    if int(numpy.split(".")[0]) >= 2:
        raise EngineError("triton", f"numpy {numpy}", "numpy 1, for the bundled stub", "pip install 'numpy<2'")
    missing = [name for binary in (bundle.server, bundle.stub) for name in missing_libraries(binary, bundle)]
    if missing:
        packages = {package for prefix, package in PACKAGES.items() for name in missing if name.startswith(prefix)}
        hint = f"apt-get install -y {' '.join(sorted(packages))}" if packages else None
        raise EngineError("triton", f"this machine lacks {', '.join(sorted(set(missing)))}", hint=hint)


def missing_libraries(binary: Path, bundle: Bundle) -> list[str]:
    ldd = subprocess.run(["ldd", binary], env=bundle.environment(), capture_output=True, text=True, check=True)
    return [line.split()[0] for line in ldd.stdout.splitlines() if line.endswith("not found")]
