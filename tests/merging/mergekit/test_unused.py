"""mergekit's YAML as people publish it: merged with warnings, or refused with the reason.

The forms are those of model cards: names of methods and keys, with the small models of the tests.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from dualign.cli.main import main
from dualign.errors import ConfigError, DualignError
from dualign.merging.estimate import estimate
from dualign.merging.merge import prepare
from dualign.merging.mergekit.load import load
from dualign.merging.output import merge_into
from tests.checkpoints.folders import read, write_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "a", "b", "c")):
        write_model(folder / name, seed)
    return folder


T = """
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - {value: 0.5}
dtype: bfloat16
"""
SLICES = (
    "slices:\n  - sources: [{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 4]}]\n"
)
TWO = "models: [{model: a}, {model: b}]\n"
BASE = "base_model: base\n"
WEIGHTED = (
    "models: [{model: a, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 0.3}}]\n"
)
THINNED = WEIGHTED.replace("weight: 0.5", "weight: 0.5, density: 0.6").replace(
    "0.3}", "0.3, density: [1, 0.5]}"
)

PLAIN = {
    "slerp of slices, the base among the sources": SLICES + "merge_method: slerp\nbase_model: a" + T,
    "slerp of models": TWO + "merge_method: slerp\nbase_model: a" + T,
    "slerp with a weight list": "models: [{model: b}]\nmerge_method: slerp\nbase_model: a\nparameters: {t: [0.1, 0.9]}\n",
    "ties, the base listed": THINNED.replace("[{", "[{model: base}, {", 1) + BASE + "merge_method: ties\nparameters: {normalize: true, int8_mask: true}\ndtype: float16\n",
    "dare_ties": THINNED + BASE + "merge_method: dare_ties\nparameters: {int8_mask: true}\n",
    "della": THINNED + BASE + "merge_method: della\nparameters: {lambda: 1.1, normalize: false, epsilon: 0.1}\n",
    "breadcrumbs_ties": THINNED + BASE + "merge_method: breadcrumbs_ties\nparameters: {gamma: 0.02}\n",
    "model_stock": TWO + BASE + "merge_method: model_stock\n",
    "sce": TWO + BASE + "merge_method: sce\nparameters: {select_topk: 0.3}\n",
    "karcher": TWO + "merge_method: karcher\nparameters: {max_iter: 20}\n",
    "ram": TWO + BASE + "merge_method: ram\n",
    "ramplus_tl": TWO + BASE + "merge_method: ramplus_tl\nparameters: {r: 0.2, alpha: 0.3}\n",
    "empty parameters": TWO.replace("model: a}", "model: a, parameters: }") + "merge_method: slerp\nbase_model: a" + T,
    "an older form of tokenizer_source": WEIGHTED + "merge_method: linear\nparameters:\ntokenizer_source: 'model:a'\ndtype: torch.float16\n",
    "passthrough stack": "slices:\n  - sources: [{model: a, layer_range: [0, 3]}]\n  - sources: [{model: a, layer_range: [1, 4]}]\nmerge_method: passthrough\n",
}  # fmt: skip


@pytest.mark.parametrize("form", PLAIN)
def test_a_published_form_merges_without_a_word(models: Path, tmp_path: Path, form: str) -> None:
    file = models / "plain.yml"
    file.write_text(PLAIN[form])
    assert merge_into(load(file, strict=True), tmp_path / "out")["warnings"] == []


MISPLACED = "has no effect here: mergekit reads it under parameters"
# A form -> the same without what has no effect, and the warnings.
WARNED = {
    "weight under slerp": (
        WEIGHTED + "merge_method: slerp\nbase_model: a" + T,
        TWO + "merge_method: slerp\nbase_model: a" + T,
        ["1: models[0].parameters.weight: has no effect: it is the base model, which isn't weighed",
         "1: models[1].parameters.weight: has no effect: slerp has no such parameter"],
    ),
    "density and weight under nearswap": (
        "models: [{model: a, parameters: {weight: 1, density: 0.5}}]\nmerge_method: nearswap\nparameters: {t: 0.01}\n" + BASE,
        "models: [{model: a}]\nmerge_method: nearswap\nparameters: {t: 0.01}\n" + BASE,
        ["1: models[0].parameters.weight: has no effect: nearswap", "1: models[0].parameters.density: has"],
    ),
    "weight under sce": (
        WEIGHTED + BASE + "merge_method: sce\nparameters: {normalize: true}\n",
        TWO + BASE + "merge_method: sce\n",
        ["models[0].parameters.weight", "models[1].parameters.weight", "4: parameters.normalize: has no effect: sce has"],
    ),
    "weight under karcher": (
        WEIGHTED + "merge_method: karcher\n", TWO + "merge_method: karcher\n",
        ["models[0].parameters.weight: has no effect: karcher", "models[1].parameters.weight"],
    ),
    "weight under model_stock, in the outer parameters": (
        TWO + BASE + "merge_method: model_stock\nparameters: {weight: 1, int8_mask: true}\n",
        TWO + BASE + "merge_method: model_stock\n",
        ["4: parameters.weight: has no effect: model_stock", "4: parameters.int8_mask"],
    ),
    "parameters of the base": (
        THINNED.replace("[{", "[{model: base, parameters: {weight: 1, density: 0.5}}, {", 1) + BASE + "merge_method: ties\n",
        THINNED + BASE + "merge_method: ties\n",
        ["models[0].parameters.weight: has no effect: it is the base model", "models[0].parameters.density"],
    ),
    "parameters of the base in a slice": (
        SLICES.replace("model: a,", "model: a, parameters: {weight: 1},") + "merge_method: slerp\nbase_model: a" + T,
        SLICES + "merge_method: slerp\nbase_model: a" + T,
        ["2: slices[0].sources[0].parameters.weight: has no effect: it is the base model"],
    ),
    "a name of the result": (
        "name: Great-7B\n" + WEIGHTED + "merge_method: linear\n", WEIGHTED + "merge_method: linear\n",
        ["1: name: has no effect: the last document is the result"],
    ),
    "density under linear and task_arithmetic": (
        THINNED + BASE + "merge_method: task_arithmetic\n", WEIGHTED + BASE + "merge_method: task_arithmetic\n",
        ["models[0].parameters.density: has no effect: task_arithmetic", "models[1].parameters.density"],
    ),
    "weight and density beside model": (
        "models: [{model: a, weight: 9, density: 0.1, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 0.3}}]\n" + BASE + "merge_method: ties\n",
        WEIGHTED + BASE + "merge_method: ties\n",
        ["1: models[0].weight: " + MISPLACED, "1: models[0].density: " + MISPLACED],
    ),
    "normalize and int8_mask beside merge_method": (
        WEIGHTED + "merge_method: linear\nnormalize: false\nint8_mask: true\n", WEIGHTED + "merge_method: linear\n",
        ["3: normalize: " + MISPLACED, "4: int8_mask: " + MISPLACED],
    ),
    "a switch of all models at one": (
        WEIGHTED.replace("0.5}", "0.5, normalize: false}") + "merge_method: linear\n", WEIGHTED + "merge_method: linear\n",
        ["models[0].parameters.normalize: has no effect here: linear has one normalize for all models"],
    ),
    "an outer weight that every model overrides": (
        WEIGHTED + "merge_method: linear\nparameters: {weight: 1}\n", WEIGHTED + "merge_method: linear\n",
        ["3: parameters.weight: has no effect: no tensor gets it"],
    ),
    "keys of other places": (
        "models: [{model: {model: a, override_architecture: X}, layer_range: [0, 4], parameters: {weight: 0.5}}, {model: b, parameters: {weight: 0.3}}]\nmerge_method: linear\n",
        WEIGHTED + "merge_method: linear\n",
        ["1: models[0].layer_range: has no effect here", "models[0].model.override_architecture: has no effect here"],
    ),
    "a residual weight": (
        SLICES + "    residual_weight: 0.1\nmerge_method: slerp\nbase_model: a" + T,
        SLICES + "merge_method: slerp\nbase_model: a" + T,
        ["3: slices[0].residual_weight: has no effect here"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", WARNED)
def test_what_has_no_effect_is_said_and_changes_no_byte(
    models: Path, tmp_path: Path, form: str
) -> None:
    text, plain, expected = WARNED[form]
    file = models / "form.yml"
    file.write_text(text)
    prepared = prepare(load(file), seed=0)
    assert len(prepared.warnings) == len(expected)
    assert all(any(part in warning for warning in prepared.warnings) for part in expected)
    for warning in prepared.warnings:
        assert warning.startswith(str(file))
        assert f"warning   {warning}" in estimate(prepared, threads=1)
    merge_into(load(file), tmp_path / "found")
    record = json.loads((tmp_path / "found" / "merge.json").read_text())
    assert record["warnings"] == list(prepared.warnings)
    file.write_text(plain)
    merge_into(load(file), tmp_path / "plain")
    found, same = read(tmp_path / "found"), read(tmp_path / "plain")
    assert all(np.array_equal(found[name], same[name]) for name in same)
    file.write_text(text)
    with pytest.raises(DualignError, match="has no effect"):
        prepare(load(file, strict=True), seed=0)


REFUSED = {
    "a weight beside model alone": (
        "models: [{model: a, weight: 1}, {model: b, weight: 1}]\nmerge_method: linear\n",
        r"no weight is given for it; set weight in models\[0\].parameters",
    ),
    "a typo in a parameter": (
        WEIGHTED.replace("weight: 0.5", "wieght: 0.5") + "merge_method: linear\n", "did you mean 'weight'",
    ),
    "a typo in the base's parameters": (
        TWO.replace("{model: a}", "{model: a, parameters: {wieght: 1}}") + "merge_method: slerp\nbase_model: a" + T, "did you mean 'weight', of other methods",
    ),
    "a typo beside merge_method": (WEIGHTED + "merge_method: linear\nnormalise: true\n", "normalise: unknown key"),
    "a filter that fits no tensor": (TWO + "merge_method: slerp\nbase_model: a" + T.replace("mlp", "mpl"), r"t\[1\]: has no effect"),
    "models as texts": ("merge_method: model_stock\nmodels: [a, b]\n" + BASE, r"^2 problems in (.*\n)+.*models\[1\]: expected keys with values, found 'b'"),
    "sources without slices": ("sources: [{model: a}]\nmerge_method: passthrough\n", "expected models or slices, one of the two"),
    "a base of a method without one, which mergekit would merge as one more model": (
        WEIGHTED + BASE + "merge_method: linear\n", "base_model: linear has no base: name one of the models, or remove it",
    ),
    "no base for ties": (WEIGHTED + "merge_method: ties\n", "ties needs a base_model"),
    "no t for slerp": (TWO + "merge_method: slerp\nbase_model: a\n", "no t is given for it"),
    "an unnamed document before the last": (WEIGHTED + "merge_method: linear\n---\n" + WEIGHTED + "merge_method: linear\n", "needs the key 'name'"),
    "modules": (WEIGHTED + "merge_method: linear\nmodules: {}\n", "modules: which tensors a module has"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_what_nobody_knows_or_what_is_missing_is_refused(models: Path, form: str) -> None:
    text, message = REFUSED[form]
    (models / "refused.yml").write_text(text)
    with pytest.raises(DualignError, match=message):
        prepare(load(models / "refused.yml"), seed=0)


def test_warnings_of_inner_documents_are_said_too(models: Path) -> None:
    inner = "name: soup\n" + WEIGHTED + "merge_method: linear\nparameters: {t: 1}\n"
    outer = "models: [{model: soup, parameters: {weight: 1}}]\nmerge_method: linear\n"
    (models / "two.yml").write_text(inner + "---\n" + outer)
    (warning,) = prepare(load(models / "two.yml"), seed=0).warnings
    assert "parameters.t: has no effect: linear has no such parameter" in warning


def test_the_command_prints_warnings_and_strict_refuses_all_of_them(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = models / "cli.yml"
    text = "name: x\n" + WEIGHTED + "merge_method: linear\nparameters: {t: 1, weight: 1}\n"
    file.write_text(text)
    assert main(["merge", str(file), str(tmp_path / "out"), "--strict"]) == 2
    captured = capsys.readouterr()
    assert "2 problems" in captured.err and "parameters.t" in captured.err
    assert not (tmp_path / "out").exists()
    assert main(["merge", str(file), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("warning: ") == 3
    assert main(["verify", str(tmp_path / "out")]) == 0
    with pytest.raises(ConfigError, match=r"--strict\)"):
        load(file, strict=True)
