"""The class that Triton's Python stub runs: requests go to the engine, what it produces goes to the pump."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import triton_python_backend_utils as pb_utils

from slipway.runtime.engine import Engine
from slipway.runtime.errors import EngineError, RequestError
from slipway.runtime.triton import wire
from slipway.runtime.triton.attendant import Attendant
from slipway.runtime.triton.exchange import Exchange
from slipway.runtime.triton.metrics import Metrics
from slipway.runtime.triton.pump import Job, Pump
from slipway.runtime.triton.tensorrt_llm import TensorrtLlmExchange
from slipway.runtime.triton.vllm import VllmExchange

CONTRACTS = {"vllm": VllmExchange, "tensorrt_llm": TensorrtLlmExchange}


@dataclass(frozen=True)
class Settings:
    """The parameters of config.pbtxt."""

    contract: str
    engine: str  # a path; a relative one starts at the version folder
    threads: int | None = None
    kv_tokens: int | None = None
    max_queued: int = 1024
    verify: bool = True
    emulate: bool | None = None

    @classmethod
    def read(cls, config: dict) -> Settings:
        stated = {name: value["string_value"] for name, value in config["parameters"].items() if name.islower()}
        unknown = stated.keys() - cls.__dataclass_fields__
        if unknown:
            raise EngineError("config.pbtxt", f"unknown parameters {sorted(unknown)}", f"of {sorted(cls.__dataclass_fields__)}")
        return cls(**{name: READERS.get(name, str)(value) for name, value in stated.items()})


def read_flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise EngineError("config.pbtxt", repr(text), "true or false")
    return text == "true"


READERS = {"threads": int, "kv_tokens": int, "max_queued": int, "verify": read_flag, "emulate": read_flag}


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        config = json.loads(args["model_config"])
        settings = Settings.read(config)
        folder = Path(args["model_repository"]) / args["model_version"] / settings.engine
        self.exchange = CONTRACTS[settings.contract]
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.engine = Engine.load(
            folder,
            threads=settings.threads,
            kv_tokens=settings.kv_tokens,
            max_queued=settings.max_queued,
            verify=settings.verify,
            emulate=settings.emulate,
        )
        self.pump = Pump(wire)
        metrics = Metrics({"model": args["model_name"], "version": args["model_version"]})
        self.attendant = Attendant(args["model_name"], self.pump, self.engine, metrics, wire)
        self.pump.start()
        self.attendant.start()

    def execute(self, requests: list) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._take(request, sender)
            except Exception as error:
                wire.give_up(sender, error)

    def is_ready(self) -> bool:
        """Asked by newer Tritons than the bundled one; with that, the attendant withdraws the model."""
        return self.attendant.failure is None

    def finalize(self) -> None:
        """Triton calls this when no request is in flight any more."""
        self.attendant.stop()
        self.engine.close(drain=False)
        self.pump.stop()

    def _take(self, request, sender) -> None:
        inputs = wire.read_inputs(request)
        if "stop" in inputs and inputs["stop"].flat[0]:
            self._stop(request.request_id())
            wire.send(sender, {}, final=True)
            return
        job = Job(self._read(inputs, request.parameters()), sender, request.request_id())
        try:
            for call in job.exchange.calls:
                job.requests.append(self.engine.submit(call.prompt, call.params, **call.options))
        except Exception:
            job.cancel()
            raise
        self.pump.add(job)

    def _read(self, inputs: dict, parameters: str) -> Exchange:
        exchange = self.exchange(inputs, parameters, self.engine.tokenizer)
        if exchange.stream and not self.decoupled:
            raise RequestError("request", "a stream asked of a model that is not decoupled", "one response")
        return exchange

    def _stop(self, request_id: str) -> None:
        """A TensorRT-LLM client ends a request by sending its id again, with `stop`."""
        for job in [job for job in list(self.pump.jobs) if job.request_id == request_id]:
            job.cancel()
