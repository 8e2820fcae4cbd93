"""Mixed requests against one engine for some minutes; at the end no KV block is owned by anybody.

python tests/benchmarks/soak.py ENGINE --requests 500 --minutes 5
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter

import click
from slipway.runtime.engine import Engine, RequestError, SamplingParams


def sampling(numbers: random.Random) -> SamplingParams:
    """Any mixture of what a request may ask for."""
    return SamplingParams(
        max_tokens=numbers.choice((1, 8, 64, 300)), temperature=numbers.choice((0.0, 0.7, 1.3)), top_k=numbers.choice((0, 1, 40)),
        top_p=numbers.choice((0.3, 0.9, 1.0)), min_p=numbers.choice((0.0, 0.1)), repetition_penalty=numbers.choice((1.0, 1.2)),
        logprobs=numbers.choice((None, 0, 3)), n=numbers.choice((1, 1, 1, 3)), stop=numbers.choice(((), ("\n\n",), ("self", "def "))),
        ignore_eos=numbers.random() < 0.5, speculate_tokens=numbers.choice((0, 0, 4)), seed=numbers.choice((None, 1)))  # fmt: skip


def one_request(engine: Engine, numbers: random.Random, shared: list[int]) -> str:
    """Sends one and says how it ended; some share a prefix, are too long, have a deadline or are cancelled midway."""
    vocab_size = engine.manifest.plan.vocab_size
    longest = engine.manifest.limits.max_sequence_length
    own = [numbers.randrange(vocab_size) for _ in range(numbers.choice((1, 20, 200, 900, longest)))]
    prompt = shared[: numbers.choice((0, 64, 400))] + own
    deadline = numbers.choice((None, None, None, 0.05))
    try:
        request = engine.submit(prompt, sampling(numbers), priority=numbers.randrange(-1, 2), deadline=deadline, cache_salt=numbers.choice((None, "a")))
        patience = numbers.choice((10**9, 10**9, 3))
        for count, _ in enumerate(request):
            if count == patience:
                request.cancel()
        return ", ".join(sorted({completion.finish_reason for completion in request.results()}))
    except RequestError:
        return "refused"


@click.command()
@click.argument("engine")
@click.option("--requests", default=500, show_default=True)
@click.option("--minutes", default=5.0, show_default=True, help="Over which the requests are spread.")
@click.option("--clients", default=24, show_default=True)
def main(engine: str, requests: int, minutes: float, clients: int) -> None:
    """Soak ENGINE; exit code 1 if a block leaked."""
    outcomes, lock, started = Counter(), threading.Lock(), time.monotonic()
    pending = list(range(requests))

    def client(loaded: Engine, shared: list[int]) -> None:
        while True:
            with lock:
                if not pending:
                    return
                number = pending.pop(0)
            time.sleep(max(0.0, started + 60 * minutes * number / requests - time.monotonic()))
            outcome = one_request(loaded, random.Random(number), shared)
            with lock:
                outcomes[outcome] += 1

    with Engine.load(engine) as loaded:
        shared = [random.Random(-1).randrange(loaded.manifest.plan.vocab_size) for _ in range(400)]
        threads = [threading.Thread(target=client, args=(loaded, shared)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        metrics = loaded.metrics()
    total = metrics["kv_blocks_free"] + metrics["kv_blocks_cached"]
    print(f"{sum(outcomes.values())} requests in {time.monotonic() - started:.0f} s: {dict(outcomes)}")
    print(f"owned {metrics['kv_blocks_owned']:.0f}, free + cached {total:.0f} of {loaded.manifest.plan.kv.num_blocks} blocks")
    sys.exit(metrics["kv_blocks_owned"] != 0 or total != loaded.manifest.plan.kv.num_blocks)


if __name__ == "__main__":
    main()
