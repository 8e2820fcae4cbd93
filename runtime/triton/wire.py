"""What the backend says to Triton, in Triton's types. Imports only inside Triton's Python stub."""

from __future__ import annotations

import traceback

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
    """Makes the model not ready. Triton lets a model unload itself under --model-control-mode=explicit alone."""
    pb_utils.Logger.log_error(f"{model} can serve no more and is unloaded: {failure}")
    try:
        pb_utils.unload_model(model)
    except pb_utils.TritonModelException as refused:
        pb_utils.Logger.log_error(f"{model} stays loaded and refuses requests: {refused}")


def code(error: Exception) -> int:
    """INVALID_ARG: this request is wrong. UNAVAILABLE: the engine cannot take it. INTERNAL: a bug of ours."""
    if isinstance(error, RequestError):
        return pb_utils.TritonError.INVALID_ARG
    return pb_utils.TritonError.UNAVAILABLE if isinstance(error, EngineError) else pb_utils.TritonError.INTERNAL
