"""Serves an engine directory: slipway_worker.py ENGINE THREADS"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from protocol import Stream, serve


@asynccontextmanager
async def model(engine_dir: str, threads: int) -> AsyncIterator[Stream]:
    from slipway.runtime.engine import Engine, SamplingParams

    with Engine.load(engine_dir, threads=threads) as engine:

        async def stream(prompt: list[int], new_tokens: int) -> AsyncIterator[int]:
            async for delta in engine.stream(prompt, SamplingParams(max_tokens=new_tokens, temperature=0, ignore_eos=True)):
                yield len(delta.token_ids)

        yield stream


if __name__ == "__main__":
    serve(model(sys.argv[1], int(sys.argv[2])))
