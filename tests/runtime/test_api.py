"""The Python side: sampling parameters, chat templates, vocabularies, refusals of loading."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from toy_engine import Toy, byte_tokenizer, edit

from slipway.runtime import loading, machine
from slipway.runtime.chat import ChatTemplate
from slipway.runtime.engine import Engine, EngineError, RequestError, SamplingParams
from slipway.runtime.manifest import KvCache, Limits, Manifest, Target
from slipway.runtime.parallel import for_each
from slipway.runtime.vocabulary import Vocabulary, read_vocabulary


@pytest.mark.parametrize("field, value", [
    ("max_tokens", 0), ("max_tokens", 1.5), ("max_tokens", True), ("min_tokens", -1), ("temperature", -0.1), ("temperature", float("nan")),
    ("temperature", "hot"), ("top_k", -1), ("top_p", 0), ("top_p", 1.1), ("min_p", 2), ("typical_p", 0), ("repetition_penalty", 0),
    ("presence_penalty", float("inf")), ("logit_bias", [1]), ("logit_bias", {"a": 1}), ("logit_bias", {3: "x"}), ("bad_words", "word"),
    ("bad_words", [""]), ("bad_words", [[]]), ("stop", [""]), ("stop", 3), ("stop_token_ids", "12"), ("stop_token_ids", [-1]),
    ("ignore_eos", 1), ("seed", -1), ("seed", 2**64), ("logprobs", -1), ("n", 0), ("n", 10**6), ("speculate_tokens", -1),
    ("max_tokens", 2**31), ("min_tokens", 2**31), ("top_k", 2**40), ("stop_token_ids", [2**31]), ("logit_bias", {2**31: 1}),
    ("bad_words", [[2**31]]), ("bad_words", ["\ud800"]), ("bad_words", ["x"] * 1025), ("stop", ["\udfff"]), ("stop", ["x"] * 65), ("stop", "x" * 1025),
    ("stop_token_ids", [1] * 1025), ("bad_words", [[1] * 1025]),
])  # fmt: skip
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(RequestError) as error:
        SamplingParams(**{field: value})
    assert error.value.where == field and error.value.expected


def test_min_tokens_fit_max_tokens():
    with pytest.raises(RequestError, match="min_tokens: 5, expected at most max_tokens, 4"):
        SamplingParams(min_tokens=5, max_tokens=4)


@pytest.mark.parametrize(("prompt", "options", "words"), [
    ("\ud800", {}, "prompt: half of a surrogate pair, expected Unicode text"),
    ([2**31], {}, "prompt: token id 2147483648"),
    ([1, 2.7], {}, "prompt: .*, expected text or a list of token ids"),
    ([1, None], {}, "prompt: .*, expected text or a list of token ids"),
    ("x", {"priority": 2**31}, "priority: 2147483648, expected a whole number of 32 bits"),
])  # fmt: skip
def test_what_the_native_side_cannot_hold(toy, prompt, options, words):
    with Engine.load(toy()) as engine:
        with pytest.raises(RequestError, match=words):
            engine.submit(prompt, **options)
        assert engine.submit("x", SamplingParams(max_tokens=2), cache_salt="\ud800").result()


def test_the_native_side_names_what_it_cannot_hold():
    from types import SimpleNamespace

    from slipway.runtime import _native

    for field, value in (("top_k", 2**31), ("stop", ["\ud800"]), ("stop_token_ids", [2**31]), ("bad_words", [[2**31]]), ("logit_bias", {2**31: 1.0})):
        params = SimpleNamespace(**{**vars(SamplingParams().with_defaults({})), field: value})
        with pytest.raises(ValueError, match=f"{field}: .*, expected a value that the engine can hold"):
            _native.core.check_params(params, 258)


CONVERSATION = [{"role": "user", "content": "<hé>"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "x"}]
TEMPLATES = {
    "generation": "{%- for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<end>{% endgeneration %}{% else %}"
                  "{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}",
    "names inside": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "blocks": "  {% if true %}\n    {{ messages[0].content }}\n  {% endif %}\n  end",
    "tojson": "{{ messages | tojson(indent=2) }}{{ messages | tojson }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ strftime_now('%Y') }}",
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_says_what_it_says_in_transformers(name):
    from transformers.utils.chat_template_utils import render_jinja_template

    expected = render_jinja_template([CONVERSATION], chat_template=TEMPLATES[name], add_generation_prompt=True)[0][0]
    assert ChatTemplate(TEMPLATES[name], {}).render(CONVERSATION) == expected


def test_a_template_that_is_none():
    with pytest.raises(RequestError, match="chat template: line 2: .*expected a Jinja template"):
        ChatTemplate("\n{% for %}", {})


def test_recommended_values_fill_what_is_unsaid():
    params = SamplingParams(top_p=0.5, stop="end").with_defaults({"temperature": 0.6, "top_p": 0.9, "top_k": None})
    assert (params.temperature, params.top_p, params.top_k, params.stop) == (0.6, 0.5, 0, ("end",))


TEMPLATE = """{%- for m in messages %}
{%- if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}
{{- bos_token + m.role + ':' + m.content | trim + '\\n' }}
{%- if loop.index > 7 %}{% break %}{% endif %}
{%- endfor %}{% if add_generation_prompt %}assistant:{% endif %}{{ extra }}"""


def test_chat_template():
    template = ChatTemplate(TEMPLATE, {"bos_token": "<s>"})
    messages = [{"role": "user", "content": " hi "}]
    assert template.render(messages) == "<s>user:hi\nassistant:"
    assert template.render(messages, add_generation_prompt=False, extra="!") == "<s>user:hi\n!"


@pytest.mark.parametrize("messages, words", [
    ([{"role": "tool", "content": ""}], "no tools"),
    ([{"role": 5, "content": "x"}], "chat template"),
    ("hello", '"role"'),
    ([{"content": "x"}], '"role"'),
])  # fmt: skip
def test_messages_a_template_cannot_take(messages, words):
    with pytest.raises(RequestError, match=words):
        ChatTemplate(TEMPLATE, {"bos_token": ""}).render(messages)


def test_a_template_cannot_leave_its_sandbox():
    with pytest.raises(RequestError, match="unsafe"):
        ChatTemplate("{{ messages.__class__.__mro__[1].__subclasses__() }}", {}).render([])


TEXT = "def naïve(): # 日本語 🎉\n\t'''x'''"


def test_vocabulary_of_a_byte_level_tokenizer():
    tokenizer = byte_tokenizer()
    vocabulary = read_vocabulary(tokenizer)
    assert b"".join(vocabulary.pieces[token] for token in tokenizer.encode(TEXT, add_special_tokens=False).ids) == TEXT.encode()
    assert vocabulary.pieces[256:] == [b"<end>", b"<begin>"] and vocabulary.special == [False] * 256 + [True] * 2
    assert not vocabulary.strip_leading_space


def test_vocabulary_of_a_sentencepiece_tokenizer():
    from tokenizers import Tokenizer, decoders, models, normalizers

    words = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "▁d": 257, "e": 258, "f": 259, "<unk>": 260}
    merges = [("▁", "d")]
    tokenizer = Tokenizer(models.BPE(vocab=words | {"d": 261}, merges=merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    vocabulary = read_vocabulary(tokenizer)
    text = b"".join(vocabulary.pieces[token] for token in tokenizer.encode(TEXT, add_special_tokens=False).ids)
    assert vocabulary.strip_leading_space and text[1:] == TEXT.encode()


def test_a_vocabulary_kept_in_a_file(tmp_path):
    path = tmp_path / "vocabulary.bin"
    vocabulary = read_vocabulary(byte_tokenizer())
    vocabulary.write(path)
    assert Vocabulary.read(path) == vocabulary
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:10], b"", b"x" + whole[1:], whole + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(EngineError, match="the engine is damaged"):
            Vocabulary.read(path)


def refusal(directory, **options):
    with pytest.raises(EngineError) as error:
        Engine.load(directory, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["weights/next.bin", "kernels/toy.so", "tokenizer/tokenizer.json", "tokenizer/vocabulary.bin", "tokenizer/chat_template.jinja"])
def test_a_flipped_bit_is_found(toy, name):
    directory = toy()
    data = bytearray((directory / name).read_bytes())
    data[len(data) // 2] ^= 4
    (directory / name).write_bytes(data)
    assert refusal(directory) == f"{directory / name}: contents changed since the build; the engine is damaged: copy or build it again"


def test_another_instruction_set_is_refused(toy):
    directory = toy()
    edit(directory, lambda m: replace(m, target=Target("cpu", "amx", ("sse2", "amx_tile_v9"))))
    assert "built for amx; this CPU lacks amx_tile_v9; build it again" in refusal(directory)
    edit(directory, lambda m: replace(m, target=Target("sm90", "sm_90", ())))
    assert "image: None, expected a file below kernels/, as for sm90" in refusal(directory)


def test_memory_is_counted_before_it_is_taken(toy, monkeypatch):
    directory = toy()
    assert "ask for kv_tokens of at most" in refusal(directory, kv_tokens=10**14)
    monkeypatch.setattr(machine, "available_bytes", lambda: 1000)
    assert "weights and activations alone do not fit" in refusal(directory)


def test_the_kv_tokens_a_refusal_names_fit(toy, monkeypatch):
    manifest = Manifest.read(toy())
    monkeypatch.setattr(machine, "available_bytes", lambda: 10**6)
    with pytest.raises(EngineError) as error:
        loading.choose_blocks(manifest, loading.Options(threads=1, kv_tokens=10**7))
    fitting = int(str(error.value).split()[-1])
    assert loading.choose_blocks(manifest, loading.Options(threads=1, kv_tokens=fitting)) * 4 == fitting


def test_logits_are_counted_once_in_the_arena(toy, monkeypatch):
    manifest = Manifest.read(toy())
    plan = manifest.plan
    needed = plan.arena_bytes + plan.shared_scratch_bytes + plan.local_scratch_bytes + sum(weight.bytes for weight in plan.weights)
    block_bytes = plan.kv.layers * plan.kv.block_bytes
    monkeypatch.setattr(machine, "available_bytes", lambda: needed + block_bytes)
    assert loading.choose_blocks(manifest, loading.Options(threads=1, kv_tokens=plan.kv.block_size)) == 1
    with pytest.raises(EngineError, match=f"kv_tokens of at most {plan.kv.block_size}$"):
        loading.choose_blocks(manifest, loading.Options(threads=1, kv_tokens=plan.kv.block_size + 1))


@pytest.mark.parametrize(("free_blocks", "blocks"), [(1000, 64), (64, 32), (3, 16)])
def test_an_automatic_kv_cache_takes_half_of_the_memory_at_most(free_blocks, blocks):
    kv = KvCache(layers=2, block_size=32, block_bytes=100, num_blocks=64)
    limits = Limits(max_sequence_length=16 * 32 - 1, max_batch_tokens=64, max_sequences=4, max_logit_rows=4)
    assert kv.blocks_within(free_blocks * 200, limits) == blocks


def test_an_automatic_kv_cache_goes_by_the_machine_that_loads_the_engine(toy, monkeypatch):
    manifest = Manifest.read(toy())
    plan = replace(manifest.plan, kv=replace(manifest.plan.kv, num_blocks=10**9))
    auto = replace(manifest, plan=plan, recipe={"limits": {"kv_cache_tokens": "auto"}})
    monkeypatch.setattr(machine, "available_bytes", lambda: 10**9)
    blocks = loading.choose_blocks(auto, loading.Options(threads=1))
    assert 0.49e9 < blocks * plan.kv.layers * plan.kv.block_bytes <= 0.5e9
    assert loading.choose_blocks(auto, loading.Options(threads=1, kv_tokens=plan.kv.block_size)) == 1
    with pytest.raises(EngineError, match="ask for kv_tokens"):
        loading.choose_blocks(replace(auto, recipe={}), loading.Options(threads=1))


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": True}, {"kv_tokens": -4}, {"kv_tokens": 1.5}])
def test_options_are_checked(toy, options):
    assert "a whole number of at least 1" in refusal(toy(), **options)


def bound_cores():
    """Of each thread of ours that is bound to one core, the core."""
    status = [(task / "status").read_text() for task in Path("/proc/self/task").iterdir()]
    fields = [dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line) for text in status]
    return [f["Cpus_allowed_list"] for f in fields if f["Name"].startswith("slipway-") and f["Cpus_allowed_list"].isdigit()]


def test_engines_do_not_bind_their_threads_to_the_same_cores(toy):
    cores = len(os.sched_getaffinity(0))
    with Engine.load(toy(), threads=cores), Engine.load(toy(), threads=cores) as second:
        second.generate("abc", SamplingParams(max_tokens=2))
        bound = bound_cores()
        assert len(bound) == len(set(bound)) or cores == 1


FEW_THREADS = """
import pathlib, resource, sys
from slipway.runtime import _native, integrity, vocabulary
from slipway.runtime.engine import Engine, EngineError
size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20),) * 2)  # room for the stacks of some threads
try:
    Engine.load(sys.argv[1], threads=500)
except EngineError as error:
    print(error)
"""


def test_threads_that_cannot_be_had_are_an_error_and_no_crash(toy):
    done = subprocess.run([sys.executable, "-c", FEW_THREADS, str(toy())], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "a thread cannot be started (Resource temporarily unavailable); ask for fewer threads" in done.stdout


def test_a_library_that_is_none_is_refused(toy, toy_library):
    directory = Toy(extra=("toy_missing",)).write(toy().parent / "odd", toy_library)
    assert "no kernel toy_missing" in refusal(directory)


def test_cores_and_memory_obey_the_control_group(tmp_path, monkeypatch):
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "a" / "memory.max").write_text("1000000\n")
    (tmp_path / "a" / "memory.current").write_text("900000\n")
    (tmp_path / "a" / "memory.stat").write_text("anon 5\nactive_file 100000\ninactive_file 50000\n")
    (group / "cpu.max").write_text("max 100000\n")
    monkeypatch.setattr(machine, "_cgroups", lambda: iter([group, group.parent]))
    assert machine.usable_cores() == 1
    assert machine.available_bytes() == 250000
    assert machine.total_bytes() == 1000000
    monkeypatch.setattr(machine, "_cgroups", lambda: iter([]))
    assert machine.usable_cores() >= 1 and 0 < machine.available_bytes() <= machine.total_bytes()


def test_the_runtime_needs_neither_torch_nor_the_compiler():
    code = "import sys, slipway.runtime.engine as e; print([m for m in sys.modules if m.split('.')[0] in " \
           "('torch', 'transformers', 'jinja2', 'onnxruntime', 'pydantic') or m.startswith('slipway.compiler')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "[]"


def test_for_each_keeps_the_order_and_the_first_error():
    assert for_each(lambda n: n * n, range(50), 4) == [n * n for n in range(50)]
    assert for_each(str, [], 4) == []
    with pytest.raises(ZeroDivisionError):
        for_each(lambda n: 1 // n, [3, 2, 1, 0], 3)
