"""The contract of Triton's vLLM backend: text in, text out, sampling parameters as JSON.

Without `stream` there is one response, which repeats the prompt unless exclude_input_in_output is true. With n > 1 every
output has n entries, in every response; a sequence without news has an empty text.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from slipway.runtime.errors import RequestError
from slipway.runtime.sampling import SamplingParams
from slipway.runtime.triton import sampling_parameters
from slipway.runtime.triton.exchange import Call, Inputs, Outputs, Part, read_text, text_tensor


class VllmExchange:
    def __init__(self, inputs: Inputs, parameters: str, _tokenizer=None):
        """parameters: JSON that came beside the tensors; counts when sampling_parameters is not given."""
        self.inputs = inputs
        self.stream = self._flag("stream")
        prompt = read_text("text_input", inputs["text_input"].flat[0])
        self.prefix = prompt if self._repeats_prompt() else ""
        given = inputs.get("sampling_parameters")
        text = parameters if given is None else read_text("sampling_parameters", given.flat[0])
        stated, options = sampling_parameters.read(text)
        if self._flag("return_logprobs") or self._flag("return_cumulative_logprob"):
            stated.setdefault("logprobs", 0)
        params = SamplingParams(**stated)
        self.calls = [Call(prompt, params, options)]
        self.parts = [Part(0, index) for index in range(params.n)]

    def responses(self, parts: list[Part]) -> list[Outputs]:
        news = {part.index: part for part in parts}
        self.parts = [news.get(part.index, without_news(part)) for part in self.parts]
        outputs = {"text_output": text_tensor([self.prefix + part.text for part in self.parts])}
        for name, value in EXTRAS.items():
            if self._flag(f"return_{name}"):
                outputs[name] = value(self.parts)
        return [outputs]

    def _flag(self, name: str) -> bool:
        return name in self.inputs and bool(self.inputs[name].flat[0])

    def _repeats_prompt(self) -> bool:
        repeats = not self._flag("exclude_input_in_output")
        if self.stream and repeats and "exclude_input_in_output" in self.inputs:
            raise RequestError("exclude_input_in_output", "false with stream", "true: a stream carries new text only")
        return repeats and not self.stream


def without_news(part: Part) -> Part:
    return replace(part.next(), finish_reason=part.finish_reason)


def logprobs_json(part: Part) -> str:
    """A list with, for each token, {token id: {logprob, rank, decoded_token}}; null without logprobs."""
    if not part.logprobs:
        return "null"
    return json.dumps([{entry.token_id: describe(entry) for entry in entries} for entries in part.logprobs])


def describe(entry) -> dict:
    return {"logprob": entry.logprob, "rank": entry.rank, "decoded_token": entry.text}


EXTRAS = {
    "finish_reason": lambda parts: text_tensor([str(part.finish_reason) for part in parts]),  # "None" while it goes on
    "cumulative_logprob": lambda parts: np.array([part.cumulative_logprob for part in parts], np.float32),
    "logprobs": lambda parts: text_tensor([logprobs_json(part) for part in parts]),
    "num_input_tokens": lambda parts: np.array([parts[0].num_prompt_tokens], np.uint32),
    "num_output_tokens": lambda parts: np.array([len(part.token_ids) for part in parts], np.uint32),
}
