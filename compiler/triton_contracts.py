"""The fields of the models that existing Triton clients talk to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """An input or output. type: Triton's, without TYPE_. dims: without the batch dimension."""

    name: str
    type: str
    dims: tuple[int, ...] = (1,)
    optional: bool = False


@dataclass(frozen=True)
class Fields:
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]


def optional(type: str, *names: str, dims: tuple[int, ...] = (1,)) -> tuple[Field, ...]:
    return tuple(Field(name, type, dims, optional=True) for name in names)


RETURNS = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")

VLLM = Fields(
    inputs=(
        Field("text_input", "STRING"),
        *optional("BOOL", "stream"),
        *optional("STRING", "sampling_parameters"),
        *optional("BOOL", "exclude_input_in_output", *(f"return_{name}" for name in RETURNS)),
    ),
    outputs=(
        Field("text_output", "STRING", (-1,)),
        Field("finish_reason", "STRING", (-1,)),
        Field("cumulative_logprob", "FP32", (-1,)),
        Field("logprobs", "STRING", (-1,)),
        Field("num_input_tokens", "UINT32"),
        Field("num_output_tokens", "UINT32", (-1,)),
    ),
)

SAMPLING = (
    *optional("INT32", "num_return_sequences", "beam_width", "end_id", "pad_id", "min_tokens"),
    *optional("FP32", "temperature", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *optional("UINT64", "seed"),
    *optional("BOOL", "exclude_input_in_output", "return_log_probs", "return_context_logits", "return_generation_logits"),
    *optional("BOOL", "return_perf_metrics", "return_num_input_tokens", "return_num_output_tokens"),
    *optional("STRING", "guided_decoding_guide_type", "guided_decoding_guide"),
)
ANSWER = (
    Field("cum_log_probs", "FP32", (-1,)),
    Field("output_log_probs", "FP32", (-1, -1)),
    *(Field(name, "INT32") for name in ("batch_index", "sequence_index", "num_input_tokens")),
    Field("num_output_tokens", "INT32", (-1,)),
)
TEXT = Fields(
    inputs=(
        Field("text_input", "STRING"),
        Field("max_tokens", "INT32"),
        *optional("BOOL", "stream"),
        *optional("STRING", "bad_words", "stop_words", "embedding_bias_words", dims=(-1,)),
        *optional("FP32", "embedding_bias_weights", dims=(-1,)),
        *optional("INT32", "top_k", "min_length"),
        *optional("FP32", "top_p", "length_penalty"),
        *optional("UINT64", "random_seed"),
        *SAMPLING,
    ),
    outputs=(Field("text_output", "STRING", (-1,)), *ANSWER),
)
IDS = Fields(
    inputs=(
        Field("input_ids", "INT32", (-1,)),
        Field("input_lengths", "INT32"),
        Field("request_output_len", "INT32"),
        *optional("BOOL", "streaming", "stop"),
        *optional("INT32", "bad_words_list", "stop_words_list", dims=(2, -1)),
        *optional("FP32", "embedding_bias", dims=(-1,)),
        *optional("INT32", "runtime_top_k"),
        *optional("FP32", "runtime_top_p", "len_penalty"),
        *SAMPLING,
    ),
    outputs=(Field("output_ids", "INT32", (-1, -1)), Field("sequence_length", "INT32", (-1,)), *ANSWER),
)
# Every name that TensorRT-LLM's clients send to.
TENSORRT_LLM = {"ensemble": TEXT, "tensorrt_llm": IDS, "tensorrt_llm_bls": TEXT}


def merge(*all_fields: Fields) -> Fields:
    """What serves all of them: an input that one of them lacks is optional."""
    inputs = {field.name: field for fields in all_fields for field in fields.inputs}
    outputs = {field.name: field for fields in all_fields for field in fields.outputs}
    shared = set.intersection(*({field.name for field in fields.inputs} for fields in all_fields))
    merged = (Field(f.name, f.type, f.dims, f.optional or f.name not in shared) for f in inputs.values())
    return Fields(tuple(merged), tuple(outputs.values()))
