"""mergekit's YAML: what it means, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from dualign.errors import ConfigError, DualignError
from dualign.merging.mergekit.load import is_merge_file, load
from dualign.merging.output import merge_into
from tests.checkpoints.folders import read, tensors, write_model


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for seed, name in enumerate(("base", "a", "b")):
        write_model(tmp_path / name, seed)
    return tmp_path


def merge(folder: Path, text: str) -> dict[str, np.ndarray]:
    file = folder / "merge.yml"
    file.write_text(text)
    merge_into(load(file), folder / "out", force=True)
    return read(folder / "out")


LINEAR = """
merge_method: linear
models:
  - {model: a, parameters: {weight: 3}}
  - {model: b, parameters: {weight: 1}}
"""
UP, Q, EMBED = ("model.layers.{}.mlp.up_proj.weight", "model.layers.{}.self_attn.q_proj.weight",
                "model.embed_tokens.weight")  # fmt: skip


def test_models_are_found_beside_the_file(models: Path) -> None:
    found, a, b = merge(models, LINEAR), tensors(1), tensors(2)
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, 0.75 * a[name] + 0.25 * b[name], atol=1e-6)


def test_a_gradient_goes_from_the_first_layer_to_the_last(models: Path) -> None:
    found = merge(
        models, LINEAR.replace("weight: 3", "weight: [0, 1, 1]").replace("1}}\n", "1}}\n")
    )
    a, b = tensors(1), tensors(2)
    # Layers 0..3 lie at 0, 1/3, 2/3, 1 of [0, 1, 1]; what has no layer lies at 0.
    for layer, weight in enumerate((0, 2 / 3, 1, 1)):
        name = UP.format(layer)
        expected = (weight * a[name] + b[name]) / (weight + 1)
        np.testing.assert_allclose(found[name], expected, atol=1e-6)
    np.testing.assert_allclose(found[EMBED], b[EMBED], atol=1e-6)


def test_the_first_filter_that_fits_counts_and_the_rest_goes_outwards(models: Path) -> None:
    text = """
merge_method: slerp
base_model: a
models: [{model: a}, {model: b}]
parameters:
  t:
    - {filter: mlp, value: [0, 1]}
    - {filter: self_attn, value: 1}
    - {value: 0}
"""
    found, a, b = merge(models, text), tensors(1), tensors(2)
    np.testing.assert_allclose(found[EMBED], a[EMBED], atol=1e-6)
    np.testing.assert_allclose(found[Q.format(0)], b[Q.format(0)], atol=1e-6)
    np.testing.assert_allclose(found[UP.format(0)], a[UP.format(0)], atol=1e-6)
    np.testing.assert_allclose(found[UP.format(3)], b[UP.format(3)], atol=1e-6)


def test_the_nearest_level_wins(models: Path) -> None:
    text = """
merge_method: task_arithmetic
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 2]}
      - {model: a, layer_range: [0, 2], parameters: {weight: [{filter: mlp, value: 1}]}}
    parameters: {weight: 0.5}
  - sources: [{model: base, layer_range: [2, 4]}, {model: a, layer_range: [2, 4]}]
parameters: {weight: 0}
"""
    found, base, a = merge(models, text), tensors(0), tensors(1)
    for name, weight in ((UP.format(0), 1), (Q.format(0), 0.5), (UP.format(2), 0)):
        expected = base[name] + weight * (a[name] - base[name])
        np.testing.assert_allclose(found[name], expected, atol=1e-6)


def test_slices_put_layers_together_anew(models: Path) -> None:
    text = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [1, 4]}]
"""
    found, a, b = merge(models, text), tensors(1), tensors(2)
    order = [(a, 0), (a, 1), (a, 2), (b, 1), (b, 2), (b, 3)]
    for layer, (source, number) in enumerate(order):
        assert np.array_equal(found[UP.format(layer)], source[UP.format(number)])
    assert np.array_equal(found[EMBED], a[EMBED])
    assert np.array_equal(found["model.norm.weight"], b["model.norm.weight"])
    assert '"num_hidden_layers": 6' in (models / "out" / "config.json").read_text()


def test_filters_see_the_name_that_a_tensor_has_in_its_model(models: Path) -> None:
    text = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 1]}]
  - sources:
      - {model: b, layer_range: [3, 4], parameters: {scale: [{filter: layers.3.mlp, value: 2}]}}
"""
    found, b = merge(models, text), tensors(2)
    assert np.array_equal(found[UP.format(1)], 2 * b[UP.format(3)])
    assert np.array_equal(found[Q.format(1)], b[Q.format(3)])


def test_settings_of_each_layer_move_with_it(models: Path) -> None:
    for name, flags in (("a", [1, 1, 1, 0]), ("b", [1, 1, 1, 0])):
        write_model(models / name, 1, no_rope_layers=flags)
    text = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 4]}]
  - sources: [{model: b, layer_range: [2, 4]}]
"""
    merge(models, text)
    config = (models / "out" / "config.json").read_text().replace("\n", "").replace(" ", "")
    assert '"no_rope_layers":[1,1,1,0,1,0]' in config


def test_named_documents_are_merged_in_one_pass(models: Path) -> None:
    text = """
name: soup
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
---
merge_method: linear
dtype: bfloat16
models:
  - {model: soup, parameters: {weight: 0.9}}
  - {model: base, parameters: {weight: 0.1}}
"""
    found = merge(models, text)
    base, a, b = (item[UP.format(0)].astype(np.float64) for item in map(tensors, (0, 1, 2)))
    from dualign.checkpoints.dtypes import from_float, to_float32

    exact = to_float32(from_float(0.9 * (a + b) / 2 + 0.1 * base, "BF16"), "BF16")
    assert np.array_equal(found[UP.format(0)], exact)


def test_a_template_and_a_tokenizer_are_taken_from_where_it_says(models: Path) -> None:
    write_model(models / "b", 2, template="other")
    merge(models, LINEAR + "tokenizer_source: b\n")
    assert (models / "out" / "chat_template.jinja").read_text() == "other"
    merge(models, LINEAR + "chat_template: '{{ mine }}'\n")
    assert (models / "out" / "chat_template.jinja").read_text() == "{{ mine }}"


def test_out_dtype_is_written(models: Path) -> None:
    from dualign.checkpoints.checkpoint import Checkpoint

    merge(models, LINEAR + "dtype: float32\nout_dtype: bfloat16\n")
    entries = Checkpoint(models / "out").entries.values()
    assert {entry.dtype for entry in entries} == {"BF16"}
    assert '"dtype": "bfloat16"' in (models / "out" / "config.json").read_text()


def test_recipes_and_merges_are_told_apart(models: Path) -> None:
    (models / "x.yml").write_text(LINEAR)
    (models / "r.yaml").write_text("kind: merge\nmodels: [{model: a}]\n")
    assert is_merge_file(models / "x.yml")
    assert not is_merge_file(models / "r.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LINEAR.replace("linear", "liner"), r":2: merge_method: unknown method 'liner' \(did you mean 'linear'"),
        (LINEAR + "parameters: {tt: 1}\n", r":6: parameters.tt: linear has no such parameter"),
        (LINEAR.replace("parameters: {weight: 3}", "wieght: 3"), r":4: models\[0\].wieght: unknown key"),
        (LINEAR + "modles: []\n", r":6: modles: unknown key \(did you mean 'models'"),
        (LINEAR.replace("weight: 3", "wieght: 3"), r":4: models\[0\].parameters.wieght: .*did you mean 'weight'"),
        (LINEAR.replace("weight: 3", "weight: x"), r"models\[0\].parameters.weight: expected a number, found 'x'"),
        (LINEAR.replace("weight: 3", "weight: .nan"), r"expected a finite number, found nan"),
        (LINEAR.replace("weight: 3", "weight: []"), r"found an empty list"),
        (LINEAR.replace("weight: 3", "weight: {filter: mlp, value: 1}"), r"has to be in a list"),
        (LINEAR.replace("weight: 3", "weight: [{filtr: mlp, value: 1}]"), r"weight\[0\].filtr: unknown key"),
        (LINEAR.replace("weight: 3", "weight: [{value: 1}, {filter: mlp, value: 2}]"), r"weight\[1\]: has no effect"),
        (LINEAR.replace("weight: 3", "weight: -1"), r"add up to 0"),
        (LINEAR.replace("weight: 3", "weight: 0").replace("weight: 1", "weight: 0"), r"weight other than 0"),
        (LINEAR.replace("model: b", "model: a"), r"listed more than once"),
        (LINEAR + "slices: []\n", r"expected models or slices"),
        (LINEAR + "dtype: int8\n", r"dtype: expected one of"),
        (LINEAR + "dtype: float16\nout_dtype: float32\n", r"dtype: has no effect: sums are float64"),
        (LINEAR + "tokenizer_source: base\n", r"tokenizer_source: base, but no base_model is given"),
        (LINEAR + "tokenizer: {source: base}\n", r"tokenizer: base, but no base_model is given"),
        (LINEAR + "modules: {}\n", r"modules: which tensors a module has is only known"),
        (LINEAR + "chat_template: llama3\n", r"chat_template: the template llama3 isn.t part of dualign"),
        (LINEAR + "config_from: c\n", r"config_from: expected one of"),
        ("name: x\n" + LINEAR + "---\n" + LINEAR, r"'x' is merged, but nothing uses it"),
        (LINEAR.replace("linear", "ties"), r"base_model: ties needs a base_model"),
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: [true]}", "expected a number"),
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: a}]\nparameters: {t: 1}", "slerp takes 1 besides the base model, found 0"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0]}]}]", r"layer_range: expected \[first, last\]"),
        ("merge_method: linear\nmodels: []", "models: expected one at least"),
        ("- 1", "expected keys with values"),
        ("a: [", "not YAML"),
        ("", "found nothing"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_right_is_refused(models: Path, text: str, message: str) -> None:
    (models / "merge.yml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(models / "merge.yml")


SLERP = "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SLERP + "parameters: {t: [{filter: mpl, value: 0}, {value: 1}]}", r"merge.yml:4: parameters.t\[0\]: has no effect"),
        (SLERP, r"no t is given for it; set t in parameters"),
        (SLERP + "parameters: {t: [{filter: mlp, value: 0}]}", r"embed_tokens.weight: no t is given"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [2, 5]}]}]", r"\[2, 5\]: .*a has the layers \[0, 4\]"),
        ("merge_method: linear\nparameters: {weight: 1}\nslices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]}]", "expected as many of each"),
        (LINEAR.replace("weight: 3", "weight: [-1, 1]"), r"embed_tokens.weight: weights \[-1.0, 1.0\] add up to 0"),
    ],
)  # fmt: skip
def test_what_only_the_tensors_show_is_refused_before_anything_is_written(
    models: Path, text: str, message: str
) -> None:
    with pytest.raises(DualignError, match=message):
        merge(models, text)
    assert not (models / "out").exists()
    assert not list(models.glob(".out*"))


def test_compat_is_refused_for_methods_that_have_none(models: Path) -> None:
    (models / "merge.yml").write_text(LINEAR)
    assert load(models / "merge.yml", compat=True).arithmetic == "input"
    ties = LINEAR.replace("linear", "ties") + "base_model: base\n"
    (models / "merge.yml").write_text(ties)
    with pytest.raises(
        ConfigError, match=r":2: merge_method: --compat mergekit is there for linear"
    ):
        load(models / "merge.yml", compat=True)
