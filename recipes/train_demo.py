"""The standard library's sources  ->  a demo checkpoint: tokenizer, weights in bf16, and training.json with how good they are.

`heldout.txt` holds a few files of CPython 3.11's library in the form the models read them; each names its file in its
first line, and files of these names are kept out of the training text.
"""

import ast
import json
import math
import platform
import re
import sysconfig
import textwrap
import time
import tokenize
from pathlib import Path

import click
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

RECIPES = Path(__file__).parent
HELDOUT = RECIPES / "heldout.txt"
SEQUENCE_LENGTH, BATCH_SIZE, LOG_INTERVAL_STEPS = 256, 8, 50
SPECIAL_TOKENS = ["<|begin|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
BEGIN, END, PAD = 0, 1, 2
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SHARED = dict(
    vocab_size=2048, hidden_size=256, intermediate_size=640, num_hidden_layers=4, max_position_embeddings=2048,
    bos_token_id=BEGIN, eos_token_id=END, pad_token_id=PAD,
)
CONFIGS = {
    "demo-llama": LlamaConfig(**SHARED, num_attention_heads=8, num_key_value_heads=4, head_dim=32, tie_word_embeddings=False),
    "demo-qwen3": Qwen3Config(**SHARED, num_attention_heads=8, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True),
}
NOT_PROSE = re.compile(r"(site-packages|lib2to3|encodings|pydoc_data|idlelib|config-.*|tests?|.*_test|_sysconfigdata.*)(/|$)")


def source_files():
    """Each library source as (name, text), sorted, without tests, tables and held-out files."""
    library = Path(sysconfig.get_path("stdlib"))
    names = sorted(path.relative_to(library).as_posix() for path in library.rglob("*.py"))
    held_out = set(re.findall(r"<\|begin\|># (\S+)", HELDOUT.read_text()))
    for name in names:
        if name not in held_out and not any(NOT_PROSE.fullmatch(part) for part in name.split("/")):
            with tokenize.open(library / name) as file:
                yield name, file.read()


def conversations(source):
    """Each documented function of a source as one exchange: its docstring's first line, then its code."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and (summary := ast.get_docstring(node)):
            code = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            yield f"<|user|>\n{node.name}: {summary.splitlines()[0]}<|end|>\n<|assistant|>\n{code}"


def documents():
    for name, source in source_files():
        for text in [f"# {name}\n{source}", *conversations(source)]:
            yield f"<|begin|>{text}<|end|>"


def train_tokenizer(texts):
    """A byte-level BPE: any text survives it, and encoding puts <|begin|> in front, as in training."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SHARED["vocab_size"], special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", BEGIN)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>", chat_template=CHAT_TEMPLATE,
        extra_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"], model_max_length=SHARED["max_position_embeddings"],
    )


def encode(tokenizer, texts):
    batches = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return torch.tensor([token for tokens in batches for token in tokens])


def loss_of(model, windows, reduction="mean"):
    """Cross entropy of windows [batch, length], each read after a <|begin|>: so a prompt may start anywhere in a file."""
    logits = model(torch.nn.functional.pad(windows[:, :-1], (1, 0), value=BEGIN)).logits
    return cross_entropy(logits.flatten(0, 1).float(), windows.flatten(), reduction=reduction)


@torch.no_grad()
def perplexity(model, tokenizer, text):
    """exp of the mean cross entropy over windows of SEQUENCE_LENGTH, per token and per UTF-8 byte."""
    windows = encode(tokenizer, [text]).split(SEQUENCE_LENGTH)
    total = sum(loss_of(model, window[None], "sum").item() for window in windows)
    return {"per_token": math.exp(total / sum(map(len, windows))), "per_byte": math.exp(total / len(text.encode()))}


def optimizers_of(model):
    """Muon for the layers' matrices, AdamW for embeddings, LM head and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = set(matrices)
    others = [p for p in model.parameters() if p not in chosen]
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01),
        torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(step, steps):
    """The learning rate's factor: 50 steps of warm-up, then a cosine from 1 to 0.02."""
    return min(1, (step + 1) / 50) * (0.51 + 0.49 * math.cos(math.pi * step / steps))


def train(model, tokens, steps):
    optimizers = optimizers_of(model)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: schedule(step, steps)) for o in optimizers]
    started = time.monotonic()
    for step in range(1, steps + 1):
        starts = torch.randint(len(tokens) - SEQUENCE_LENGTH, (BATCH_SIZE,))
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, tokens[starts[:, None] + torch.arange(SEQUENCE_LENGTH)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in (*optimizers, *schedulers):
            each.step()
        model.zero_grad()
        if step % LOG_INTERVAL_STEPS == 0 or step == steps:
            report(step, steps, loss.item(), time.monotonic() - started)


def report(step, steps, loss, elapsed_s):
    minutes_left = elapsed_s / step * (steps - step) / 60
    tokens_per_s = step * BATCH_SIZE * SEQUENCE_LENGTH / elapsed_s
    click.echo(f"step {step}/{steps}  loss {loss:.3f}  {tokens_per_s:,.0f} tokens/s  {minutes_left:.1f} min left")


@click.command()
@click.argument("name", type=click.Choice(list(CONFIGS)))
@click.option("--steps", default=6000, show_default=True, help="Optimizer steps of 2,048 tokens each.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write.  [default: recipes/NAME/checkpoint]")
def main(name, steps, seed, out):
    """Train a demo model on this Python's standard library; one thread, the same weights for the same seed and steps."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    texts, held_out = list(documents()), HELDOUT.read_text()
    tokenizer = train_tokenizer(texts)
    tokens = encode(tokenizer, texts)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    click.echo(f"{model.num_parameters():,} parameters, {len(texts):,} documents, {len(tokens):,} tokens")
    train(model, tokens, steps)
    write(model.eval(), tokenizer, out or RECIPES / name / "checkpoint", {
        "command": f"python recipes/train_demo.py {name} --steps {steps} --seed {seed}",
        "seed": seed, "steps": steps, "tokens_seen": steps * BATCH_SIZE * SEQUENCE_LENGTH, "tokens_in_corpus": len(tokens),
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "heldout_perplexity_fp32": perplexity(model, tokenizer, held_out),
        "heldout_perplexity_bf16": perplexity(model.bfloat16().float(), tokenizer, held_out),
    })


def write(model, tokenizer, folder, training):
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(training, indent=2) + "\n")
    click.echo(json.dumps(training, indent=2))


if __name__ == "__main__":
    main()
