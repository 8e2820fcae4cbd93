"""Makes engine directories without the compiler: a toy model whose continuation Python computes too."""

from __future__ import annotations

import pathlib
import random
import struct
import subprocess
from dataclasses import dataclass, replace

from slipway.runtime import machine
from slipway.runtime.manifest import (
    Buffer,
    KvCache,
    Limits,
    Manifest,
    Needs,
    Operand,
    Plan,
    Size,
    Step,
    Target,
    Tokenizer,
    WeightRef,
    hash_file,
)
from slipway.runtime.vocabulary import read_vocabulary

VOCAB, EOS, BEGIN = 258, 256, 257
BLOCK_SIZE = 4
HERE = pathlib.Path(__file__).parent
INCLUDE = HERE.parents[2] / "plugins" / "include"
LIMITS = Limits(max_sequence_length=256, max_batch_tokens=64, max_sequences=16, max_logit_rows=32)


def compile_kernels(out: pathlib.Path) -> pathlib.Path:
    command = ["c++", "-std=c++20", "-O1", "-shared", "-fPIC", f"-DVOCAB={VOCAB}", f"-I{INCLUDE}", "-o", out, HERE / "toy_kernels.cpp"]
    subprocess.run(command, check=True)
    return out


def next_tokens(seed: int = 0) -> list[int]:
    table = list(range(VOCAB))
    random.Random(seed).shuffle(table)
    return table


def continuation(prompt: list[int], count: int, seed: int = 0, stop: tuple[int, ...] = (EOS,)) -> list[int]:
    """What a greedy engine must say: up to `count` tokens, the stop token included."""
    table, said, value = next_tokens(seed), [], 2166136261
    for token in prompt:
        value = (value ^ (token + 1)) * 16777619 % 2**32
    while len(said) < count:
        said.append(table[value % VOCAB])
        if said[-1] in stop:
            break
        value = (value ^ (said[-1] + 1)) * 16777619 % 2**32
    return said


@dataclass(frozen=True)
class Toy:
    """period: a parrot, which repeats what it heard that many tokens ago. extra: symbols called besides the model's own."""

    seed: int = 0
    period: int | None = None
    extra: tuple[str, ...] = ()
    segment: bool = False
    num_blocks: int = 256
    limits: Limits = LIMITS
    default_sampling: tuple[tuple[str, object], ...] = (("temperature", 0.0),)

    def write(self, directory: pathlib.Path, library: pathlib.Path) -> pathlib.Path:
        for folder in ("weights", "kernels", "tokenizer", "segments"):
            (directory / folder).mkdir(parents=True)
        (directory / "kernels" / "toy.so").write_bytes(library.read_bytes())
        table = range(VOCAB) if self.period else next_tokens(self.seed)
        (directory / "weights" / "next.bin").write_bytes(struct.pack(f"{VOCAB}i", *table))
        (directory / "weights" / "period.bin").write_bytes(struct.pack("i", self.period or 0))
        byte_tokenizer().save(str(directory / "tokenizer" / "tokenizer.json"))
        read_vocabulary(byte_tokenizer()).write(directory / "tokenizer" / "vocabulary.bin")
        (directory / "tokenizer" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
        if self.segment:
            write_doubling(directory / "segments" / "double.onnx")
        files = {str(path.relative_to(directory)): hash_file(path) for path in sorted(directory.rglob("*")) if path.is_file()}
        self.manifest(files).write(directory)
        return directory

    def manifest(self, files: dict) -> Manifest:
        flags = tuple(sorted(machine.cpu_flags() & {"sse2", "avx2"}))
        weights = tuple(WeightRef(name, f"{name}.bin", files[f"weights/{name}.bin"].bytes) for name in ("next", "period"))
        tokenizer = Tokenizer((EOS,), {"bos_token": "<begin>", "eos_token": "<end>"}, True, True)
        return Manifest("toy", Target("cpu", "toy", flags), self.limits, self.plan(weights), files, tokenizer,
                        default_sampling=dict(self.default_sampling))

    def plan(self, weights: tuple[WeightRef, ...]) -> Plan:
        tokens, rows = self.limits.max_batch_tokens, self.limits.max_logit_rows
        row = VOCAB * 4 + 56  # rows need not lie close together
        sizes = [("said", "i32", Size(per_token=64)), ("hash", "i32", Size(per_token=64)),
                 ("wanted", "i32", Size(per_logit_row=64)), ("logits", "f32", Size(per_logit_row=row)),
                 ("scores", "f32", Size(per_logit_row=row))]  # fmt: skip
        buffers, end = [], 0
        for name, dtype, size in sizes:
            buffers.append(Buffer(name, dtype, end, size))
            end += -(-size.at(tokens, rows) // 64) * 64
        said, hashed, wanted, logits, scores = (Operand(i, 0, size.per_token or size.per_logit_row) for i, (_, _, size) in enumerate(sizes))
        raw = scores if self.segment else logits
        think = ("toy_parrot", (1,)) if self.period else ("toy_recall", ())
        steps = [
            Step("remember", "toy", "tokens", (), (said,), (), "toy_remember", kv_layer=1),
            Step("think", "toy", "tokens", (said,), (hashed,), think[1], think[0], kv_layer=1),
            Step("gather", "toy", "logit_rows", (hashed,), (wanted,), (), "toy_gather"),
            Step("unembed", "toy", "logit_rows", (wanted,), (raw,), (0,), "toy_unembed"),
            *(Step(symbol, "toy", "logit_rows", (), (raw,), (), symbol) for symbol in self.extra),
        ]
        if self.segment:
            steps.append(Step("double", "segment", "logit_rows", (scores,), (logits,), (), segment="double.onnx"))
        kernels = {step.symbol: self.needs(step, weights, sizes) for step in steps if step.symbol}
        return Plan(end, 4096, 64, VOCAB, logits, "toy.so", tuple(buffers), weights, kernels, tuple(steps),
                    KvCache(2, BLOCK_SIZE, BLOCK_SIZE * 4, self.num_blocks))


    def needs(self, step: Step, weights: tuple[WeightRef, ...], sizes: list) -> Needs:
        """As toy_kernels.cpp has it: four bytes a row, or a row of logits."""

        def touched(operand: Operand) -> int:
            return VOCAB * 4 if sizes[operand.buffer][1] == "f32" else 4

        cached = step.kv_layer is not None
        return Needs(tuple(map(touched, step.inputs)), tuple(map(touched, step.outputs)), tuple(weights[w].bytes for w in step.weights),
                     step.symbol == "toy_gather", Size(fixed=4), 4, None, None, BLOCK_SIZE * cached, BLOCK_SIZE * 4 * cached)


CHAT_TEMPLATE = """{%- for message in messages %}{{ bos_token }}{{ message['role'] }}: {{ message['content'] }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""


def byte_tokenizer():
    """A token is a byte; 256 ends a text, 257 begins one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    from slipway.runtime.vocabulary import byte_level_alphabet

    vocab = {char: ord(byte) for char, byte in ((chr(code), byte) for code, byte in byte_level_alphabet().items())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True), AddedToken("<begin>", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing("<begin> $A", special_tokens=[("<begin>", BEGIN)])
    return tokenizer


def write_doubling(path: pathlib.Path) -> None:
    """An ONNX segment that doubles: argmax stays."""
    import onnx
    from onnx import TensorProto, helper

    shape = ["rows", VOCAB]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(path))


def edit(directory: pathlib.Path, change) -> None:
    """Writes engine.json anew with manifest := change(manifest)."""
    change(Manifest.read(directory)).write(directory)


def edit_plan(directory: pathlib.Path, **fields) -> None:
    edit(directory, lambda manifest: replace(manifest, plan=replace(manifest.plan, **fields)))
