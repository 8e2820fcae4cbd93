"""Small random checkpoints of many families, and batches to run their graphs on."""

import functools
from types import SimpleNamespace

import torch
import transformers
from slipway.compiler.capture import capture
from slipway.compiler.checkpoint import Checkpoint
from slipway.plugins.paged_attention.arguments import BLOCK_SIZE

torch.set_num_threads(1)
MAX_LENGTH = 96
SHAPE = dict(
    vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=MAX_LENGTH, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
)  # fmt: skip


def llama(rope_type="default", **rope):
    return transformers.LlamaConfig, {"rope_parameters": {"rope_type": rope_type, "rope_theta": 1e4} | rope}


FAMILIES = {
    "llama": llama(),
    "llama-linear": llama("linear", factor=4.0),
    "llama-llama3": llama("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    "llama-yarn": llama("yarn", factor=4.0, original_max_position_embeddings=24, mscale=0.7, attention_factor=1.3),
    "llama-dynamic": (llama()[0], llama("dynamic", factor=4.0)[1] | {"max_position_embeddings": 24}),
    "llama-biased": (transformers.LlamaConfig, {"mlp_bias": True, "attention_bias": True}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen2": (transformers.Qwen2Config, {"tie_word_embeddings": True}),
    "mistral": (transformers.MistralConfig, {"sliding_window": 16}),
    "phi3": (transformers.Phi3Config, {}),
    "granite": (
        transformers.GraniteConfig,
        {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1, "logits_scaling": 8.0},
    ),
    "granite-swa": (transformers.GraniteSWAConfig, {"sliding_window": 16, "attention_multiplier": 0.25}),  # with sinks
    "olmo2": (transformers.Olmo2Config, {}),
    "smollm3": (transformers.SmolLM3Config, {}),
    "gemma2": (transformers.Gemma2Config, {"head_dim": 16, "sliding_window": 16, "tie_word_embeddings": True}),
    "cohere": (transformers.CohereConfig, {}),
    "cohere2": (transformers.Cohere2Config, {"sliding_window": 16}),
    "glm4": (transformers.Glm4Config, {"head_dim": 16}),
    "gpt-neox": (transformers.GPTNeoXConfig, {"num_key_value_heads": 4}),
    "gpt2": (transformers.GPT2Config, {"n_positions": MAX_LENGTH, "num_key_value_heads": 4}),
    "opt": (transformers.OPTConfig, {"ffn_dim": 96, "word_embed_proj_dim": 64, "num_key_value_heads": 4}),
    "phi": (transformers.PhiConfig, {}),
    "stablelm": (transformers.StableLmConfig, {}),
    "stablelm-one-kv-head": (transformers.StableLmConfig, {"num_key_value_heads": 1}),
    "starcoder2": (transformers.Starcoder2Config, {}),
}


class Tiny:
    """model: in eager transformers, float32. checkpoint: its directory. graph: as captured."""

    def __init__(self, family, directory, **changes):
        torch.manual_seed(sum(map(ord, family)))
        config_class, own = FAMILIES[family]
        config = config_class(**SHAPE | own | changes)
        self.model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
        self.model.eval().requires_grad_(False)
        for parameter in self.model.parameters():  # biases and norms too, and large enough to matter
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (parameter.dim() == 1))
        self.model.save_pretrained(directory)
        self.checkpoint = Checkpoint(directory)

    @functools.cached_property
    def graph(self):
        return capture(self.checkpoint, SimpleNamespace(max_sequence_length=MAX_LENGTH))

    def logits(self, tokens):
        """Of every position, by transformers."""
        return self.model(torch.tensor([tokens]), use_cache=False).logits[0]


class Cache:
    """A KV cache of a few sequences, each with blocks of its own in no particular order."""

    def __init__(self, graph, num_sequences, seed=0):
        shape = graph.placeholder("kv_cache").meta["val"].shape
        blocks = num_sequences * -(-MAX_LENGTH // BLOCK_SIZE)
        self.kv = torch.randn(shape[0], blocks, *shape[2:], generator=torch.Generator().manual_seed(seed))
        self.block_table = torch.randperm(blocks).reshape(num_sequences, -1).int()
        self.lengths = [0] * num_sequences

    def batch(self, chunks, logit_rows):
        """The graph's inputs for new tokens of some sequences: chunks is [(sequence, tokens)]."""
        starts = [self.lengths[s] for s, _ in chunks]
        for s, tokens in chunks:
            self.lengths[s] += len(tokens)
        tensor = functools.partial(torch.tensor, dtype=torch.int32)
        sizes = torch.tensor([0] + [len(tokens) for _, tokens in chunks])
        return {
            "input_ids": tensor([token for _, tokens in chunks for token in tokens]),
            "positions": tensor([start + i for start, (_, tokens) in zip(starts, chunks) for i in range(len(tokens))]),
            "cu_seqlens": sizes.cumsum(0).int(),
            "kv_lens": tensor([self.lengths[s] for s, _ in chunks]),
            "block_table": self.block_table[[s for s, _ in chunks]],
            "logit_rows": tensor(logit_rows),
            "kv_cache": self.kv,
        }


def random_tokens(count, seed):
    return torch.randint(3, 128, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def some_batch(graph, seed=0):
    """A prefill of two sequences, with the logits of three rows."""
    cache = Cache(graph, 2, seed)
    return cache.batch([(0, random_tokens(9, seed)), (1, random_tokens(4, seed + 1))], [12, 3, 8])
