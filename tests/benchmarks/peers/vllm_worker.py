"""Serves a checkpoint with vLLM, as its server would: vllm_worker.py CHECKPOINT KV_CACHE. Runs in vLLM's own environment."""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from protocol import Stream, serve


@asynccontextmanager
async def model(checkpoint: str, kv_cache: str) -> AsyncIterator[Stream]:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(model=checkpoint, dtype="bfloat16", max_model_len=8192, max_num_seqs=32, enable_prefix_caching=True,
                                kv_cache_dtype=kv_cache, generation_config="vllm", disable_log_stats=True)  # fmt: skip
    engine, numbers = AsyncLLM.from_engine_args(arguments), itertools.count()

    async def stream(prompt: list[int], new_tokens: int) -> AsyncIterator[int]:
        sampling = SamplingParams(max_tokens=new_tokens, temperature=0, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        async for output in engine.generate({"prompt_token_ids": prompt}, sampling, str(next(numbers))):
            yield len(output.outputs[0].token_ids)

    try:
        yield stream
    finally:
        engine.shutdown()


if __name__ == "__main__":
    serve(model(sys.argv[1], sys.argv[2]))
