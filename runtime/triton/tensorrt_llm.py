"""The contract of TensorRT-LLM's Triton models: `ensemble` (text in, text out) and `tensorrt_llm` (ids in, ids out).

One parser serves both: a request with input_ids is answered in ids. Inputs and outputs have a leading batch dimension;
every row is a prompt. In a stream each sequence of each row has responses of its own, with its new tokens. Otherwise there
is one response, which /generate and `infer` can take: outputs are [rows, sequences] or [rows, sequences, tokens], tokens
padded, and the answer repeats the prompt unless exclude_input_in_output is true.
"""

from __future__ import annotations

import itertools

import numpy as np

from slipway.runtime.errors import RequestError
from slipway.runtime.grammar import Grammar
from slipway.runtime.sampling import SamplingParams
from slipway.runtime.triton.exchange import Call, Inputs, Outputs, Part, read_text, text_tensor

SYNONYMS = {
    "request_output_len": "max_tokens",
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "len_penalty": "length_penalty",
    "streaming": "stream",
    "random_seed": "seed",
    "min_length": "min_tokens",
}
# What the engine does not do: (values that ask for nothing, reason).
REFUSED = {
    "beam_width": ((1,), "the engine samples and has no beam search; num_return_sequences gives several answers"),
    "return_context_logits": ((False,), "the engine keeps no logits; return_log_probs gives log probabilities"),
    "return_generation_logits": ((False,), "the engine keeps no logits; return_log_probs gives log probabilities"),
    "return_perf_metrics": ((False,), "times are on /metrics"),
}
GUIDE = ("guided_decoding_guide_type", "guided_decoding_guide")
GUIDES = {
    "json": lambda _: Grammar.json_schema({}),
    "json_schema": Grammar.json_schema,
    "regex": Grammar.regex,
    "ebnf_grammar": Grammar.ebnf,
}
PLAIN = ("repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens", "seed")


class TensorrtLlmExchange:
    def __init__(self, inputs: Inputs, _parameters: str, tokenizer):
        rows = split_rows(inputs)
        self.rows = [Row(row, tokenizer) for row in rows]
        self.calls = [row.call for row in self.rows]
        self.stream = bool(rows[0].get("stream", [False])[0])
        sequences = {row.call.params.n for row in self.rows}
        if len(sequences) > 1 and not self.stream:
            raise RequestError("num_return_sequences", f"{sorted(sequences)} in one batch", "the same in every row, without stream")

    def responses(self, parts: list[Part]) -> list[Outputs]:
        if self.stream:
            return [self._outputs([[part]]) | self._place(part) for part in parts]
        found = {(part.call, part.index): part for part in parts}
        return [self._outputs([[found[call, index] for index in range(row.call.params.n)] for call, row in enumerate(self.rows)])]

    def _outputs(self, grid: list[list[Part]]) -> Outputs:
        """grid: [rows][sequences]"""
        outputs = self._content(grid)
        if self._wants("return_log_probs"):
            outputs["cum_log_probs"] = np.array([[part.cumulative_logprob for part in row] for row in grid], np.float32)
            outputs["output_log_probs"] = padded([[[e[0].logprob for e in part.logprobs] for part in row] for row in grid], np.float32)
        if self._wants("return_num_input_tokens"):
            outputs["num_input_tokens"] = np.array([[row[0].num_prompt_tokens] for row in grid], np.int32)
        if self._wants("return_num_output_tokens"):
            outputs["num_output_tokens"] = np.array([[len(part.token_ids) for part in row] for row in grid], np.int32)
        return outputs

    def _content(self, grid: list[list[Part]]) -> Outputs:
        answers = [[self.rows[part.call].answer(part, repeat_prompt=not self.stream) for part in row] for row in grid]
        if isinstance(self.calls[0].prompt, str):
            return {"text_output": np.array([text_tensor(row) for row in answers])}
        lengths = np.array([[len(ids) for ids in row] for row in answers], np.int32)
        return {"output_ids": padded(answers, np.int32, self.rows[0].pad_id), "sequence_length": lengths}

    def _place(self, part: Part) -> Outputs:
        """Whose tokens a response of a stream carries, where there are several."""
        place = {"batch_index": (part.call, len(self.rows)), "sequence_index": (part.index, self.calls[part.call].params.n)}
        return {name: np.array([[index]], np.int32) for name, (index, count) in place.items() if count > 1}

    def _wants(self, name: str) -> bool:
        return any(row.wants(name) for row in self.rows)


def padded(rows: list[list[list]], dtype: type, fill: int = 0) -> np.ndarray:
    """[rows, sequences, tokens of the longest]"""
    longest = max(len(tokens) for row in rows for tokens in row)
    return np.array([[tokens + [fill] * (longest - len(tokens)) for tokens in row] for row in rows], dtype)


def split_rows(inputs: Inputs) -> list[dict[str, np.ndarray]]:
    """One dict a prompt, under the names of the text model."""
    names = {name: SYNONYMS.get(name, name) for name in inputs}
    for name, common in names.items():
        if name != common and common in inputs:
            raise RequestError(name, f"given beside {common}", "one of the two")
    prompts = [name for name in ("text_input", "input_ids") if name in inputs]
    if len(prompts) != 1:
        raise RequestError("text_input, input_ids", f"{len(prompts)} of them given", "exactly one")
    size = inputs[prompts[0]].shape[0]
    return [{common: inputs[name][index] for name, common in names.items()} for index in range(size)]


class Row:
    """One prompt of a request: its inputs, and its call of the engine."""

    def __init__(self, row: dict[str, np.ndarray], tokenizer):
        self.row = row
        for name, (neutral, reason) in REFUSED.items():
            if name in row and row[name][0] not in neutral:
                raise RequestError(name, str(row[name][0]), str(neutral[0]), reason)
        if "max_tokens" not in row:
            raise RequestError("max_tokens", "not given", "how many tokens to generate (request_output_len for ids)")
        self.prompt = self._prompt()
        stated = self._plain() | self._shape() | self._end(tokenizer) | self._words(tokenizer) | self._guide()
        self.call = Call(self.prompt, SamplingParams(**stated))

    def wants(self, name: str) -> bool:
        return name in self.row and bool(self.row[name][0])

    @property
    def pad_id(self) -> int:
        return self.row["pad_id"][0].item() if "pad_id" in self.row else 0

    def answer(self, part: Part, *, repeat_prompt: bool) -> str | list[int]:
        repeat = repeat_prompt and not self.wants("exclude_input_in_output")
        return self.prompt * repeat + (part.text if isinstance(self.prompt, str) else part.token_ids)

    def _prompt(self) -> str | list[int]:
        if "text_input" in self.row:
            return read_text("text_input", self.row["text_input"][0])
        ids = self.row["input_ids"].tolist()
        length = int(self.row["input_lengths"][0]) if "input_lengths" in self.row else len(ids)
        if not 0 < length <= len(ids):
            raise RequestError("input_lengths", str(length), f"1 to {len(ids)}, the length of input_ids")
        return ids[:length]

    def _plain(self) -> dict:
        params = {name: self.row[name][0].item() for name in PLAIN if name in self.row}
        params["max_tokens"] = self.row["max_tokens"][0].item()
        params["n"] = self.row["num_return_sequences"][0].item() if "num_return_sequences" in self.row else 1
        if self.wants("return_log_probs"):
            params["logprobs"] = 0
        return params

    def _shape(self) -> dict:
        """TensorRT-LLM is greedy unless top_k or top_p says otherwise; a top_p of 0 is unsaid."""
        top_k = self.row["top_k"][0].item() if "top_k" in self.row else 0
        top_p = self.row["top_p"][0].item() if "top_p" in self.row else 0.0
        temperature = self.row["temperature"][0].item() if "temperature" in self.row else 1.0
        if top_k == 1 or (top_k == 0 and top_p == 0):
            return {"temperature": min(temperature, 0.0), "top_p": top_p or 1.0}  # what no sampler takes is handed on, to be refused
        return {"temperature": temperature, "top_k": top_k, "top_p": top_p or 1.0}

    def _end(self, tokenizer) -> dict:
        """end_id takes the place of the model's own; -1 means none. Sequences of several ids stop as text."""
        stop_ids = [] if "end_id" not in self.row or self.row["end_id"][0] < 0 else [self.row["end_id"][0].item()]
        words = read_word_list("stop_words_list", self.row)
        return {
            "ignore_eos": "end_id" in self.row,
            "stop_token_ids": stop_ids + [word[0] for word in words if len(word) == 1],
            "stop": read_words("stop_words", self.row) + [decode(tokenizer, word) for word in words if len(word) > 1],
        }

    def _words(self, tokenizer) -> dict:
        bias = dict(enumerate(self.row["embedding_bias"].tolist())) if "embedding_bias" in self.row else {}
        for word, weight in self._bias_words():
            for token in encode(tokenizer, word):
                bias[token] = bias.get(token, 0.0) + weight
        return {
            "bad_words": read_words("bad_words", self.row) + read_word_list("bad_words_list", self.row),
            "logit_bias": {token: weight for token, weight in bias.items() if weight},
        }

    def _guide(self) -> dict:
        kind, guide = (read_text(name, self.row[name][0]) if name in self.row else "" for name in GUIDE)
        if not kind and not guide:
            return {}
        if kind not in GUIDES:
            raise RequestError(GUIDE[0], repr(kind), f"one of {', '.join(GUIDES)}")
        if not guide and kind != "json":
            raise RequestError(GUIDE[1], "not given", f"a text for {kind}")
        return {"grammar": GUIDES[kind](guide)}

    def _bias_words(self) -> list[tuple[str, float]]:
        words = read_words("embedding_bias_words", self.row)
        weights = self.row["embedding_bias_weights"].tolist() if "embedding_bias_weights" in self.row else []
        if len(words) != len(weights):
            raise RequestError("embedding_bias_weights", f"{len(weights)} weights", f"one for each of {len(words)} words")
        return list(zip(words, weights, strict=True))


def encode(tokenizer, word: str) -> list[int]:
    if tokenizer is None:
        raise RequestError("embedding_bias_words", repr(word), "embedding_bias: the engine has no tokenizer")
    return tokenizer.encode(word, add_special_tokens=False).ids


def decode(tokenizer, word: list[int]) -> str:
    if tokenizer is None:
        raise RequestError("stop_words_list", str(word), "single ids: the engine has no tokenizer")
    return tokenizer.decode(word, skip_special_tokens=False)


def read_words(name: str, row: dict[str, np.ndarray]) -> list[str]:
    words = [read_text(name, word) for word in row.get(name, ())]
    return [word for word in words if word]


def read_word_list(name: str, row: dict[str, np.ndarray]) -> list[list[int]]:
    """[2, N]: token ids of all words, one after the other, and where each word ends, padded with -1."""
    if name not in row:
        return []
    ids, ends = row[name].tolist()
    spans = list(itertools.pairwise([0, *(end for end in ends if end >= 0)]))
    if any(not start < end <= len(ids) for start, end in spans):
        raise RequestError(name, f"word ends {ends}", f"rising, from 1 to at most {len(ids)}, then -1")
    words = [ids[start:end] for start, end in spans]
    if any(token < 0 for word in words for token in word):
        raise RequestError(name, f"token ids {ids}", "at least 0 within a word")
    return words
