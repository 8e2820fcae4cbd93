"""What the backend says to Triton, in Triton's types. Imports only inside Triton's Python stub."""

from __future__ import annotations

import itertools
import os
import traceback
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from slipway.runtime.errors import EngineError, RequestError
from slipway.runtime.triton.exchange import Outputs

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def read_inputs(request) -> dict[str, np.ndarray]:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def send(sender, outputs: Outputs, *, final: bool) -> None:
    tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items()]
    sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL if final else 0)


def fail(sender, error: Exception) -> None:
    """Ends the request with an error."""
    sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code(error))), flags=FINAL)


def give_up(sender, error: Exception) -> None:
    """Ends a request that went wrong in the middle, if Triton still listens. Raises nothing."""
    if not isinstance(error, EngineError):
        note(error)
    try:
        fail(sender, error)
    except Exception as unsent:  # this request is lost; the others must not be
        note(unsent)


def note(error: Exception) -> None:
    """A bug of ours, in Triton's log."""
    pb_utils.Logger.log_error("".join(traceback.format_exception(error)))


def withdraw(model: str, failure: EngineError) -> None:
    """Makes the model not ready. Triton lets a model unload itself in explicit mode alone; asked in another mode while
    requests come, Triton 24.10 can crash."""
    unloads = may_unload()
    pb_utils.Logger.log_error(f"{model} can serve no more and {'is unloaded' if unloads else 'refuses requests'}: {failure}")
    if unloads:
        pb_utils.unload_model(model)


def may_unload() -> bool:
    """Whether the server, our parent process, runs with --model-control-mode=explicit."""
    arguments = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().replace(b"=", b"\0").split(b"\0")
    modes = [value for name, value in itertools.pairwise(arguments) if name == b"--model-control-mode"]
    return modes[-1:] == [b"explicit"]


def code(error: Exception) -> int:
    """INVALID_ARG: this request is wrong. UNAVAILABLE: the engine cannot take it. INTERNAL: a bug of ours."""
    if isinstance(error, RequestError):
        return pb_utils.TritonError.INVALID_ARG
    return pb_utils.TritonError.UNAVAILABLE if isinstance(error, EngineError) else pb_utils.TritonError.INTERNAL
