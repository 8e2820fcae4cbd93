"""The standard library's sources  ->  a demo checkpoint: tokenizer, bf16 weights, and training.json with how good they are.

`heldout.txt` holds nine files of CPython 3.11's library as the models read them. The first line of each is its name; files
of these names are kept out of the training text. Its license is beside it.
"""

from __future__ import annotations

import ast
import json
import math
import platform
import re
import sysconfig
import textwrap
import time
import tokenize
from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path

import click
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy, pad
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config

RECIPES = Path(__file__).parent
HELDOUT = RECIPES / "heldout.txt"
LEFT_OUT = re.compile(r"(site|dist)-packages|lib2to3|encodings|pydoc_data|idlelib|config-.*|tests?|.*_test|_sysconfigdata.*")
WINDOW, LONG_WINDOW, TOKENS_PER_STEP, LOG_INTERVAL_STEPS = 256, 2048, 2048, 50
SPECIAL_TOKENS = ["<|begin|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
BEGIN, END, PAD = 0, 1, 2
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SHARED = dict(
    vocab_size=2048, hidden_size=256, intermediate_size=640, num_hidden_layers=4, max_position_embeddings=2048,
    bos_token_id=BEGIN, eos_token_id=END, pad_token_id=PAD,
)  # fmt: skip
CONFIGS = {
    "demo-llama": LlamaConfig(**SHARED, num_attention_heads=8, num_key_value_heads=4, head_dim=32, tie_word_embeddings=False),
    "demo-qwen3": Qwen3Config(**SHARED, num_attention_heads=8, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True),
}
MUON_LEARNING_RATE = {"llama": 0.01, "qwen3": 0.03}  # llama has no norms on q and k: larger updates saturate its attention


def documents() -> Iterator[str]:
    """Every source file under its name, then each of its documented functions as a conversation."""
    for name, source in source_files():
        for text in [f"# {name}\n{source}", *conversations(source)]:
            yield f"<|begin|>{text}<|end|>"


def source_files() -> Iterator[tuple[str, str]]:
    """Name and text of the library's files, sorted, without tests, tables and the held-out files."""
    library = Path(sysconfig.get_path("stdlib"))
    held_out = re.findall(r"<\|begin\|># (\S+)", HELDOUT.read_text())
    for name in sorted(path.relative_to(library).as_posix() for path in library.rglob("*.py")):
        if name not in held_out and not any(map(LEFT_OUT.fullmatch, name.split("/"))):
            with tokenize.open(library / name) as file:
                yield name, file.read()


def conversations(source: str) -> Iterator[str]:
    """The user gives a function's name and the first line of its docstring; the assistant answers with its code."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and (docstring := ast.get_docstring(node)):
            code = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            yield f"<|user|>\n{node.name}: {docstring.splitlines()[0]}<|end|>\n<|assistant|>\n{code}"


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text survives it. Encoding puts <|begin|> in front; the chat template brings its own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", BEGIN)])
    trainer = trainers.BpeTrainer(
        vocab_size=SHARED["vocab_size"], special_tokens=SPECIAL_TOKENS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, chat_template=CHAT_TEMPLATE, model_max_length=SHARED["max_position_embeddings"],
        bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>", extra_special_tokens=SPECIAL_TOKENS[3:],
    )  # fmt: skip


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """The tokens of all texts in one row."""
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return torch.tensor([token for tokens in encoded for token in tokens])


def loss_of(model: PreTrainedModel, windows: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross entropy of windows [batch, length], each read after a <|begin|>, so that a prompt may start anywhere in a file."""
    logits = model(pad(windows[:, :-1], (1, 0), value=BEGIN)).logits
    return cross_entropy(logits.flatten(0, 1).float(), windows.flatten(), reduction=reduction)


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str) -> dict[str, float]:
    """exp of the mean cross entropy, a token and a UTF-8 byte, over consecutive windows of WINDOW tokens."""
    tokens = encode(tokenizer, [text])
    total = sum(loss_of(model, window[None], "sum").item() for window in tokens.split(WINDOW))
    return {"per_token": math.exp(total / len(tokens)), "per_byte": math.exp(total / len(text.encode()))}


def train(model: PreTrainedModel, tokens: torch.Tensor, steps: int) -> None:
    """Windows are short for speed; the last 15 % of the steps see long ones, for the positions that short ones lack."""
    optimizers = optimizers_of(model)
    schedulers = [LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps)) for optimizer in optimizers]
    started = time.monotonic()
    for step in range(1, steps + 1):
        windows = sample(tokens, WINDOW if step <= 0.85 * steps else LONG_WINDOW)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, windows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in (*optimizers, *schedulers):
            each.step()
        model.zero_grad()
        if step % LOG_INTERVAL_STEPS == 0 or step == steps:
            report(step, steps, loss.item(), time.monotonic() - started)


def optimizers_of(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, LM head and norms."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if weight not in set(matrices)]
    return [
        torch.optim.Muon(matrices, lr=MUON_LEARNING_RATE[model.config.model_type], weight_decay=0.01),
        torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate_factor(step: int, steps: int) -> float:
    """50 steps of warm-up, then a cosine from 1 to 0.02."""
    return min(1, (step + 1) / 50) * (0.51 + 0.49 * math.cos(math.pi * step / steps))


def sample(tokens: torch.Tensor, length: int) -> torch.Tensor:
    """TOKENS_PER_STEP tokens as windows [batch, length] from anywhere."""
    starts = torch.randint(len(tokens) - length, (TOKENS_PER_STEP // length, 1))
    return tokens[starts + torch.arange(length)]


def report(step: int, steps: int, loss: float, elapsed_s: float) -> None:
    tokens_per_s = step * TOKENS_PER_STEP / elapsed_s
    minutes_left = elapsed_s / step * (steps - step) / 60
    click.echo(f"step {step}/{steps}  loss {loss:.3f}  {tokens_per_s:,.0f} tokens/s  {minutes_left:.1f} min left")


@click.command()
@click.argument("name", type=click.Choice(list(CONFIGS)))
@click.option("--steps", default=4000, show_default=True, help=f"Optimizer steps, {TOKENS_PER_STEP:,} tokens each.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write.  [default: recipes/NAME/checkpoint]")
def main(name: str, steps: int, seed: int, out: Path | None) -> None:
    """Train a demo model on this Python's library: 30 minutes on one core; same seed and steps, same weights."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    texts, held_out = list(documents()), HELDOUT.read_text()
    tokenizer = train_tokenizer(texts)
    tokens = encode(tokenizer, texts)
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[name]))
    click.echo(f"{model.num_parameters():,} parameters, {len(texts):,} documents, {len(tokens):,} tokens")
    train(model, tokens, steps)
    model.eval()
    training = {
        "command": f"python recipes/train_demo.py {name} --steps {steps} --seed {seed}",
        "seed": seed, "steps": steps, "tokens_seen": steps * TOKENS_PER_STEP, "tokens_in_corpus": len(tokens),
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "heldout_perplexity_fp32": perplexity(model, tokenizer, held_out),
        "heldout_perplexity_bf16": perplexity(model.bfloat16().float(), tokenizer, held_out),
    }  # fmt: skip
    write(model.bfloat16(), tokenizer, training, out or RECIPES / name / "checkpoint")


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, training: dict[str, object], folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(training, indent=2) + "\n")
    click.echo(json.dumps(training, indent=2))


if __name__ == "__main__":
    main()
