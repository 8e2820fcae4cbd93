"""Recipes are checked with file:line, a hint and all errors at once; no text makes anything but a UserError."""

import textwrap

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slipway.compiler.errors import UserError
from slipway.recipes import catalog, schema

GOOD = """\
schema: 1
model: tiny
checkpoint: here
target: cpu
precision:
  weights: int4
  group_size: 64
limits:
  max_sequence_length: 128
"""
ON_GPU = GOOD.replace("cpu", "sm90").replace("int4", "fp8").replace("group_size: 64", "activations: fp8")


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text):
        (tmp_path / "r.yaml").write_text(textwrap.dedent(text))
        return "r.yaml"

    return write


def message(path, *overrides):
    with pytest.raises(UserError) as caught:
        schema.load(path, overrides)
    return str(caught.value)


def test_defaults_are_resolved(write):
    recipe = schema.load(write(GOOD))
    assert recipe.precision.lm_head == "int8"
    assert recipe.verify.kl is None
    assert recipe.limits.max_sequences == 32
    assert str(recipe.checkpoint_dir) == "here"
    assert recipe.resolved()["schema"] == 1 and recipe.resolved()["cpu"] == {"isa": "auto", "threads": "auto"}


def test_a_resolved_recipe_is_a_recipe_that_resolves_to_itself(write):
    resolved = schema.load(write(GOOD)).resolved()
    assert schema.Recipe.model_validate(resolved).resolved() == resolved


def test_recipes_are_frozen(write):
    with pytest.raises(ValueError, match="frozen"):
        schema.load(write(GOOD)).target = "gpu"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "r.yaml:1: empty file; expected a mapping that starts with schema: 1"),
        ("# nothing\n", "r.yaml:1: empty file; expected a mapping that starts with schema: 1"),
        ("- a", "r.yaml:1: a list; expected a mapping that starts with schema: 1"),
        ("schema: 1\n\ttarget: cpu", "r.yaml:2: a tab; expected spaces\nhint: YAML is indented with spaces"),
        ("a: b: c", "r.yaml:1: not YAML: mapping values are not allowed here"),
        ("a: 1\nb: 2\na: 3", "r.yaml:3: a: given twice, first at r.yaml:1\nhint: remove one of them"),
        ("a: &x 1\nb: *x", "r.yaml:2: b: an alias; expected the value itself"),
        ("a: &x [*x]", "r.yaml:1: a.0: an alias; expected the value itself"),
        ("? [a]\n: b", "r.yaml:1: a key that is not a word; expected key: value"),
        (GOOD.replace("64", "96"), "r.yaml:7: precision.group_size: int4 weights need 32, 64 or 128, got 96\nhint: group_size: 64"),
        (GOOD.replace("int4", "int8"),
         "r.yaml:7: precision.group_size: only int4 weights have groups\nhint: remove it, or --set the key to null"),
        (GOOD.replace("int4", "in8"), "r.yaml:6: precision.weights: 'in8'; expected bf16, int8, int4, fp8, fp8_block, nvfp4 or mxfp4\nhint: did you mean 'int8'?"),
        (GOOD.replace("cpu", "sm90") + "runtime: {deterministic: true}\n",
         "r.yaml:10: runtime.deterministic: kernels for GPUs sum in an order that depends on how many tokens a step has; expected false for a GPU"
         "\nhint: deterministic: false"),
        (GOOD.replace("limits", "  activations: fp8\nlimits"),
         "r.yaml:8: precision.activations: fp8 activations have kernels for GPUs alone; expected bf16 for target: cpu\nhint: activations: bf16"),
        (GOOD.replace("cpu", "sm90").replace("limits", "  activations: fp8\nlimits"),
         "r.yaml:8: precision.activations: fp8 activations are for fp8 weights; expected bf16 with int4 weights\nhint: activations: bf16"),
        (ON_GPU.replace("sm90", "sm80"),
         "r.yaml:7: precision.activations: sm80 does not multiply fp8; expected bf16, or a target from sm89 on\nhint: activations: bf16"),
        (ON_GPU.replace("fp8", "nvfp4"),
         "r.yaml:7: precision.activations: sm90 does not multiply nvfp4; expected bf16, or a target from sm100 on\nhint: activations: bf16"),
        (ON_GPU + "gpu: {cublas: never}\n",
         "r.yaml:7: precision.activations: fp8 activations are multiplied by cuBLASLt, and gpu.cublas is never; expected bf16\nhint: gpu.cublas: auto"),
        (ON_GPU + "gpu: {cublas: 16}\n", "r.yaml:10: gpu.cublas: 16; expected auto, never, or rows from 17 to 65536"),
        (GOOD + "gpu: {cublas: never}\n", "r.yaml:10: gpu: choices for a GPU, and target is cpu\nhint: leave gpu out"),
        (GOOD.replace("limits", "  kv_cache: fp8\nlimits"),
         "r.yaml:8: precision.kv_cache: fp8 keys and values have kernels for GPUs alone; expected bf16 or int8 for target: cpu\nhint: kv_cache: int8"),
        (GOOD.replace("cpu", "sm90") + "cpu: {isa: avx2}\n", "r.yaml:10: cpu: choices for a CPU, and target is sm90\nhint: leave cpu out"),
        (GOOD.replace("cpu", "H100"), "r.yaml:4: target: 'H100' is a card; expected its compute capability\nhint: target: sm90"),
        (GOOD.replace("cpu", "sm9"), "r.yaml:4: target: 'sm9'; expected cpu, sm80, sm86, sm89, sm90, sm100 or sm120\nhint: did you mean 'sm90'?"),
        (GOOD.replace("128", '"128"'), "r.yaml:9: limits.max_sequence_length: '128'; expected a whole number from 2 to 1073741824"),
        (GOOD.replace("128", "true"), "r.yaml:9: limits.max_sequence_length: true; expected a whole number from 2 to 1073741824"),
        (GOOD + "  max_batch_tokens: 8\n",
         "r.yaml:8: limits.max_sequences: 32 sequences decode 32 tokens a step, more than max_batch_tokens; expected at most 8"),
        (GOOD + "  kv_cache_tokens: 100\n",
         "r.yaml:10: limits.kv_cache_tokens: 100 tokens do not hold one sequence of max_sequence_length; expected at least 128"),
        (GOOD + "cpu: amx\n", "r.yaml:10: cpu: 'amx'; expected a mapping of isa, threads"),
        (GOOD + "cpu:\n", "r.yaml:10: cpu: nothing; expected a mapping of isa, threads"),
        (GOOD + "verify: {kl: .nan}\n", "r.yaml:10: verify.kl: nan; expected a number over 0"),
        (GOOD + "runtime: {determinstic: true}\n",
         "r.yaml:10: runtime.determinstic: unknown key; expected deterministic\nhint: did you mean 'deterministic'?"),
    ],
)  # fmt: skip
def test_one_error(write, text, expected):
    assert message(write(text)) == expected


def test_errors_are_reported_together_in_the_order_of_the_file(write, golden):
    path = write("""\
        schema: 1
        modl: x
        target: cpu
        precision:
          weights: int3
          wieghts: int4
          overrides:
            - {match: "*", weights: int4, group_size: 96}
            - match: a
        limits: {max_sequence_length: -1, max_batch_tokens: lots, max_sequences: 1.5, kv_cache_tokens: all}
        sampling: {top_p: 2}
        verify: {when: often}
        """)
    golden("recipes/many_errors.txt", message(path) + "\n")


def test_a_file_that_cannot_be_read(tmp_path):
    assert message(tmp_path).endswith("Is a directory; expected a recipe, a YAML file")
    assert "No such file" in message(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: \xe9")
    assert "byte 7 is not UTF-8" in message(tmp_path / "latin.yaml")


def test_overrides_replace_values_and_are_the_place_of_their_errors(write):
    path = write(GOOD)
    recipe = schema.load(path, ["limits.max_sequences=4", "cpu={isa: amx, threads: 2}", "precision.group_size=null"])
    assert (recipe.limits.max_sequences, recipe.cpu.isa, recipe.cpu.threads, recipe.precision.group_size) == (4, "amx", 2, 64)
    assert message(path, "precision.group_size=96").startswith("--set precision.group_size=96: precision.group_size: int4 weights")
    assert message(path, "limit.max_sequences=4").startswith("--set limit.max_sequences=4: limit: unknown key")
    assert message(path, "limits") == "--set limits: not an assignment; expected key=value\nhint: --set limits.max_sequences=8"
    assert message(path, "model.size=2") == "--set model.size=2: model is 'tiny'; expected a mapping"
    assert message(path, "cpu=[").startswith("--set cpu=[: not YAML")


def test_overrides_reach_list_items(write):
    path = write(GOOD + "sampling: {top_k: 5}\n")
    items = "precision.overrides=[{match: 'a.*', weights: bf16}]"
    assert schema.load(path, [items, "precision.overrides.0.weights=int8"]).precision.overrides[0].weights == "int8"
    place = "--set precision.overrides.3.weights=int8"
    assert message(path, items, place[6:]) == f"{place}: precision.overrides: no item 3; expected 0 to 0"


def test_precision_of_a_linear(write):
    items = "precision.overrides=[{match: '*.down_proj', weights: int4, group_size: 32}, {match: '*.0.*', weights: bf16}]"
    precision = schema.load(write(GOOD), [items, "precision.zero_point=true"]).precision
    assert precision.of("model.layers.0.mlp.down_proj") == ("int4", 32, False)
    assert precision.of("model.layers.0.mlp.up_proj") == ("bf16", None, False)
    assert precision.of("model.layers.1.mlp.up_proj") == ("int4", 64, True)
    assert precision.of("lm_head") == ("int8", None, False)


def test_errors_of_later_stages_name_the_line(write):
    recipe = schema.load(write(GOOD), ["limits.max_sequences=2"])
    error = recipe.error(("limits", "max_sequence_length"), "128, but the model ends at 64")
    assert str(error) == "r.yaml:9: limits.max_sequence_length: 128, but the model ends at 64"
    assert str(recipe.error(("limits", "max_sequences"), "x")).startswith("--set limits.max_sequences=2: ")


KEYS = st.sampled_from(["schema", "model", "target", "precision", "weights", "group_size", "limits", "overrides", "cpu", "x"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["int4", "cpu", "auto"])
TREES = st.recursive(SCALARS, lambda t: st.lists(t, max_size=3) | st.dictionaries(KEYS, t, max_size=4), max_leaves=12)
YAML_TEXT = st.lists(st.sampled_from([*"-?:,[]{}#&*!|>'\"%@` \t\n", "a", "1", "0x", "~", "\n  ", "- ", ": ", "!!int", "...", "\x00"]))


def loads_or_user_error(path, overrides=()):
    try:
        schema.load(path, overrides)
    except UserError as error:
        assert str(error) and "Traceback" not in str(error)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text() | YAML_TEXT.map("".join) | TREES.map(repr))
def test_any_text_is_a_recipe_or_a_user_error(tmp_path, text):
    (tmp_path / "r.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    loads_or_user_error(tmp_path / "r.yaml")


@settings(max_examples=200, deadline=None)
@given(key=st.lists(KEYS | st.integers(0, 3).map(str), min_size=1, max_size=4).map(".".join), value=TREES.map(repr) | st.text())
def test_any_override_is_a_recipe_or_a_user_error(key, value):
    loads_or_user_error(catalog.find("demo-llama/cpu-int4"), [f"{key}={value}"])
