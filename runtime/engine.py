"""An engine directory, loaded: prompts in, completions or streams of deltas out. Safe to use from many threads."""

from __future__ import annotations

import hashlib
import pathlib
import threading
import weakref
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace

from slipway.runtime import gpu, loading, sampling
from slipway.runtime.chat import ChatTemplate
from slipway.runtime.dispatcher import Dispatcher
from slipway.runtime.errors import EngineError, RequestError
from slipway.runtime.grammar import Grammar, GrammarCompiler
from slipway.runtime.manifest import Manifest
from slipway.runtime.requests import Completion, Delta, Logprob, Request, RequestMetrics
from slipway.runtime.sampling import SamplingParams
from slipway.runtime.step_times import ROUNDS, median_step_seconds
from slipway.runtime.vocabulary import Vocabulary

__all__ = [
    "Completion", "Delta", "Engine", "EngineError", "Grammar", "Logprob", "Request", "RequestError", "RequestMetrics", "SamplingParams"
]  # fmt: skip

Prompt = str | Sequence[int]
MOST_SHRINKING = 4  # times fewer bytes after a tokenizer's normalization: NFKC turns a 4-byte letter into one byte


class Engine:
    """Made by `load`. `tokenizer` is a tokenizers.Tokenizer, or None for an engine without one."""

    def __init__(self, manifest: Manifest, directory: pathlib.Path, tokenizer, native, vocabulary: Vocabulary):
        self.manifest, self.directory, self.tokenizer = manifest, directory, tokenizer
        self._native = native
        longest_token = max(map(len, vocabulary.pieces), default=0)
        self._longest_text = MOST_SHRINKING * longest_token * manifest.limits.max_sequence_length  # bytes
        where = f"{directory}/engine.json: default_sampling"
        self._recommended = sampling.recommended(manifest.default_sampling, where)
        self._chat_template: ChatTemplate | None = None
        self._grammars = GrammarCompiler(vocabulary, manifest.plan.vocab_size)
        self._dispatcher = Dispatcher(native, vocabulary.text)
        self._dispatcher.start()
        self._closing = weakref.finalize(self, _stop, native, self._dispatcher)  # also when the interpreter ends

    @classmethod
    def load(
        cls,
        path,
        *,
        threads: int | None = None,
        kv_tokens: int | None = None,
        max_queued: int = 1024,
        verify: bool = True,
        emulate: bool | None = None,
    ) -> Engine:
        """path: an engine directory. threads, kv_tokens: None for what the recipe says. max_queued: requests that may wait.
        emulate: run a GPU's kernels on the CPU; None: if SLIPWAY_DEVICE says so.

        verify: compare every file with its hash. Raises EngineError, in one sentence, for an engine that is damaged or was
        made for another version or machine, and for one that does not fit into memory.
        """
        from slipway.runtime import _native

        directory = pathlib.Path(path)
        manifest = Manifest.read(directory)
        emulated = gpu.emulation(manifest.target, emulate)
        options = loading.Options(loading.stated_threads(manifest) if threads is None else threads, kv_tokens, verify, max_queued, emulated)
        loading.check_machine(manifest, directory, emulated)
        num_blocks = loading.choose_blocks(manifest, options)
        weights = loading.map_files(manifest, directory, options)
        tokenizer = loading.tokenizer_of(manifest, directory)
        vocabulary = loading.vocabulary_of(manifest, directory)
        loading.request_amx(manifest)
        try:
            native = _native.Engine(manifest, str(directory), weights, vocabulary, num_blocks, options.num_threads, max_queued, emulated)
        except RuntimeError as error:
            raise EngineError(str(directory), str(error)) from None
        loading.bind_segments(manifest, directory, native, options)
        return cls(manifest, directory, tokenizer, native, vocabulary)

    # Requests.

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Completions in the order of the prompts; n for each, where n > 1. One prompt may stand without a list."""
        many = [prompts] if isinstance(prompts, str) or _are_ids(prompts) else list(prompts)
        params = [sampling] * len(many) if sampling is None or isinstance(sampling, SamplingParams) else list(sampling)
        if len(params) != len(many):
            raise RequestError("sampling", f"{len(params)} of them", f"one, or one for each of {len(many)} prompts")
        requests: list[Request] = []
        try:
            for prompt, each in zip(many, params, strict=True):
                requests.append(self.submit(prompt, each))
            return [completion for request in requests for completion in request.results()]
        except BaseException:
            for request in requests:
                request.cancel()
            raise

    def submit(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        priority: int = 0,
        deadline: float | None = None,
        cache_salt: str | None = None,
    ) -> Request:
        """Starts a request and returns at once.

        priority: lower goes first. deadline: seconds from now; a request that has not begun by then ends with "deadline".
        cache_salt: only requests with the same salt share prefixes. Raises RequestError for a request that cannot be served.
        """
        if not self._closing.alive:
            raise EngineError("engine", "closed")
        token_ids = self._encode(prompt)
        params = (sampling or SamplingParams()).with_defaults(self._recommended)
        self._check(token_ids, params, priority, deadline)
        grammar = params.grammar and self._grammars.compile(params.grammar)
        request = Request(len(token_ids), params.n, lambda request: self._native.cancel(request.id))
        number = self._dispatcher.register(request)
        try:
            self._native.submit(number, token_ids, self._resolve(params), priority, deadline, _salt(cache_salt), grammar)
        except Exception as error:
            self._dispatcher.forget(request)
            if isinstance(error, ValueError):
                raise _as_request_error(str(error)) from None
            if isinstance(error, RuntimeError):
                raise EngineError("engine", str(error)) from None
            raise
        return request

    async def stream(self, prompt: Prompt, sampling: SamplingParams | None = None, **options) -> AsyncIterator[Delta]:
        """Deltas as they come; options as for `submit`. Leaving the loop early cancels the request."""
        import asyncio  # imports for longer than an engine loads, and most programs that need it have it

        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        request = self.submit(prompt, sampling, **options)

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(ready.set)
            except RuntimeError:  # the loop has ended without its reader: nobody wants the rest
                request.cancel()

        request.listen(wake)
        ready.set()  # for what came before listen
        try:
            while True:
                await ready.wait()
                ready.clear()
                for delta in request.news():
                    if delta is None:
                        request.results()  # raises what went wrong
                        return
                    yield delta
        finally:
            request.cancel()

    def render_chat(self, messages: Sequence[Mapping], **values) -> str:
        """The prompt for a conversation of {"role": ..., "content": ...}. values: what else the model's template reads."""
        if self._chat_template is None:
            self._chat_template = self._read_chat_template()
        return self._chat_template.render(messages, **values)

    # The engine.

    @property
    def failure(self) -> EngineError | None:
        """Why the engine serves no more although nobody closed it; None while it serves. All its requests have then ended."""
        return self._dispatcher.failure

    @property
    def kv_tokens(self) -> int:
        """How many the KV cache holds."""
        metrics = self.metrics()
        return int(sum(metrics[f"kv_blocks_{state}"] for state in ("free", "cached", "owned"))) * self.manifest.plan.kv.block_size

    def metrics(self) -> dict[str, float]:
        """Counters, gauges and histograms by name; times in seconds."""
        return self._native.metrics()

    def time_steps(self, *, sequences: int, context: int, rounds: int = ROUNDS) -> list[float]:
        """Seconds each step of the plan takes when so many sequences decode with `context` cached tokens each; medians of `rounds`."""
        return median_step_seconds(self, sequences, context, rounds)

    def close(self, drain: bool = True) -> None:
        """Ends the engine: after the requests under way, or at once, with an error for each of them. May be called again."""
        self._native.stop(drain)
        self._dispatcher.join()
        self._closing()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind, *_) -> None:
        self.close(drain=kind is None)

    def _encode(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            if not _are_ids(prompt) or not all(map(sampling.is_integer, prompt)):
                raise RequestError("prompt", f"{prompt!r:.40}", "text or a list of token ids")
            return list(prompt)
        if self.tokenizer is None:
            raise RequestError("prompt", "text", "token ids: the engine has no tokenizer")
        if not sampling.is_unicode(prompt):
            raise RequestError("prompt", "half of a surrogate pair", "Unicode text")
        if len(prompt) > self._longest_text:
            raise RequestError("prompt", f"{len(prompt)} characters", f"at most {self._longest_text}: it cannot fit max_sequence_length")
        special = self.manifest.tokenizer.add_special_tokens and not self._starts_with_special(prompt)
        (encoding,) = self.tokenizer.encode_batch_fast([prompt], add_special_tokens=special)  # `encode` would hold the GIL
        return encoding.ids

    def _starts_with_special(self, prompt: str) -> bool:
        """A rendered chat brings its own."""
        begin = self.manifest.tokenizer.special_tokens.get("bos_token")
        return bool(begin) and prompt.startswith(begin)

    def _check(self, token_ids: list[int], params: SamplingParams, priority: int, deadline: float | None) -> None:
        longest = self.manifest.limits.max_sequence_length
        if not 1 <= len(token_ids) < longest:
            raise RequestError("prompt", f"{len(token_ids)} tokens", f"1..{longest - 1}, one less than max_sequence_length")
        wrong = next((token for token in token_ids if not 0 <= token < self.manifest.plan.vocab_size), None)
        if wrong is not None:
            raise RequestError("prompt", f"token id {wrong}", f"0..{self.manifest.plan.vocab_size - 1}")
        if deadline is not None and not deadline > 0:
            raise RequestError("deadline", f"{deadline}", "seconds from now, above 0")
        if type(priority) is not int or not -sampling.INT32 <= priority < sampling.INT32:
            raise RequestError("priority", f"{priority!r:.40}", "a whole number of 32 bits, lower goes first")
        if params.n > self.manifest.limits.max_sequences:
            raise RequestError("n", f"{params.n}", f"at most max_sequences, {self.manifest.limits.max_sequences}")

    def _resolve(self, params: SamplingParams) -> SamplingParams:
        """bad_words as token ids: each word as it is written at the start of a text and after a space."""
        words = [ids for word in params.bad_words for ids in self._word_ids(word)]
        return replace(params, bad_words=words)

    def _word_ids(self, word: str | Sequence[int]) -> Iterable[list[int]]:
        if not isinstance(word, str):
            return [list(word)]
        if self.tokenizer is None:
            raise RequestError("bad_words", repr(word), "token ids: the engine has no tokenizer")
        texts = dict.fromkeys((word, " " + word.lstrip()))
        return [ids for text in texts if (ids := self.tokenizer.encode(text, add_special_tokens=False).ids)]

    def _read_chat_template(self) -> ChatTemplate:
        described = self.manifest.tokenizer
        if described is None or not described.has_chat_template:
            raise RequestError("chat", "the model has no chat template", "a plain prompt")
        source = (self.directory / "tokenizer" / "chat_template.jinja").read_text()
        return ChatTemplate(source, described.special_tokens)


def _are_ids(prompt: object) -> bool:
    """Judged by the first: not a list of prompts."""
    return isinstance(prompt, Sequence) and not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], int)


def _as_request_error(message: str) -> RequestError:
    """message: "field: found, expected ...", as the native checks say it."""
    where, _, rest = message.partition(": ")
    found, _, expected = rest.partition(", expected ")
    return RequestError(where, found, expected or None)


def _salt(text: str | None) -> int:
    """64 bits of a salt, 0 for none."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) if text else 0


def _stop(native, dispatcher: Dispatcher) -> None:
    native.stop(False)
    if threading.current_thread() is not dispatcher:  # which may drop the last reference to an engine
        dispatcher.join()
