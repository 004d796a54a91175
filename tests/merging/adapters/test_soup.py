"""Soups against true changes in float64 worked out here, against the live model, and against PEFT where it is right."""

import hashlib
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dualign.checkpoints.checkpoint import read_whole
from dualign.checkpoints.weights import open_weights
from dualign.cli.main import main
from dualign.errors import CheckpointError, ConfigError, DualignError, MergeError
from dualign.merging.adapters.lowrank import Truncation
from dualign.merging.adapters.soup import SoupConfig, make_soup
from dualign.merging.config import MergeInput, MergeStage
from dualign.merging.merge import prepare
from tests.checkpoints.test_adapters import (
    ATTENTION,
    edit_config,
    live,
    logits_of,
    make_adapter,
    make_base,
)

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "same modules": ({"target_modules": "all-linear"}, {"target_modules": "all-linear", "r": 8}),
    "rslora": ({"target_modules": ATTENTION, "use_rslora": True}, {"target_modules": ATTENTION}),
    "other modules": (
        {"target_modules": ["q_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": ["v_proj", "down_proj"], "r": 3},
    ),
    "patterns": (
        {"target_modules": ATTENTION, "rank_pattern": {"q_proj": 7}},
        {"target_modules": ATTENTION, "alpha_pattern": {"layers.2.self_attn.q_proj": 1}},
    ),
    "embedding": ({"target_modules": ["embed_tokens"]}, {"target_modules": ["embed_tokens"]}),
}


def true_changes(adapter: Path) -> dict[str, np.ndarray]:
    """What the adapter does to each weight, by PEFT's own scalings, in float64."""
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    found = {}
    for path, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.scaling:
            linear = "default" in module.lora_A
            A = module.lora_A["default"].weight if linear else module.lora_embedding_A["default"]
            B = module.lora_B["default"].weight if linear else module.lora_embedding_B["default"]
            change = module.scaling["default"] * (B.double() @ A.double())
            found[path] = (change if linear else change.T).detach().numpy()
    return found


def weighted(parts: list[dict[str, np.ndarray]], weights: list[float]) -> dict[str, np.ndarray]:
    paths = {path for part in parts for path in part}
    return {
        path: sum(w * part[path] for part, w in zip(parts, weights, strict=True) if path in part)
        for path in paths
    }


def two(tmp_path: Path, kind: str = "same modules", **base: Any) -> tuple[Path, Path, Path]:
    model = make_base(tmp_path / "base", **base)
    settings = KINDS[kind]
    first = make_adapter(model, tmp_path / "first", **settings[0])
    return model, first, make_adapter(model, tmp_path / "second", seed=2, **settings[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_the_sum_is_exact_and_loads_in_peft(tmp_path: Path, kind: str, tied: bool) -> None:
    _, *pair = two(tmp_path, kind, tied=tied)
    record = make_soup(SoupConfig(adapters=tuple(pair), weights=(0.75, -0.5)), tmp_path / "out")
    expected = weighted([true_changes(item) for item in pair], [0.75, -0.5])
    found = true_changes(tmp_path / "out")
    assert found.keys() == expected.keys() == record["modules"].keys()
    for path, change in expected.items():
        np.testing.assert_allclose(found[path], change, atol=1e-6)
        assert record["modules"][path]["norm"] == pytest.approx(np.linalg.norm(change))
    assert record["error"] == 0


def test_weights_of_one_give_the_logits_of_both_active(tmp_path: Path) -> None:
    base, *pair = two(tmp_path, tied=True)
    make_soup(SoupConfig(adapters=tuple(pair), weights=(1, 1)), tmp_path / "out")
    torch.testing.assert_close(live(base, tmp_path / "out"), live(base, *pair), atol=1e-5, rtol=0)


def test_the_mean_is_the_default_and_a_weight_of_zero_leaves_the_other(tmp_path: Path) -> None:
    base, first, second = two(tmp_path)
    make_soup(SoupConfig(adapters=(first, first)), tmp_path / "mean")
    torch.testing.assert_close(live(base, tmp_path / "mean"), live(base, first), atol=1e-5, rtol=0)
    make_soup(SoupConfig(adapters=(first, second), weights=(0, 1)), tmp_path / "one")
    torch.testing.assert_close(live(base, tmp_path / "one"), live(base, second), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_to_a_rank_the_error_reported_is_the_error(tmp_path: Path, kind: str) -> None:
    _, *pair = two(tmp_path, kind)
    record = make_soup(
        SoupConfig(adapters=tuple(pair), weights=(1, 1), truncation=Truncation(rank=2)),
        tmp_path / "out",
    )
    expected = weighted([true_changes(item) for item in pair], [1, 1])
    found = true_changes(tmp_path / "out")
    missing = {path: np.linalg.norm(change - found[path]) for path, change in expected.items()}
    for path, change in expected.items():
        values = np.linalg.svd(change, compute_uv=False)
        assert missing[path] == pytest.approx(np.linalg.norm(values[2:]), abs=1e-5)
        reported = record["modules"][path]
        assert reported["error"] == pytest.approx(missing[path] / np.linalg.norm(values), abs=1e-5)
        assert reported["rank"] == 2
    again = make_soup(
        SoupConfig(adapters=tuple(pair), weights=(1, 1), truncation=Truncation(rank=4)),
        tmp_path / "four",
    )
    assert record["error_by_rank"][2] == pytest.approx(record["error"], abs=1e-7)
    assert record["error_by_rank"][4] == pytest.approx(again["error"], abs=1e-7)
    whole = math.hypot(*missing.values()) / math.hypot(*map(np.linalg.norm, expected.values()))
    assert record["error"] == pytest.approx(whole, abs=1e-5)


def test_a_tied_embedding_stays_tied(tmp_path: Path) -> None:
    """PEFT ties the first adapter's head alone, so two of them active aren't the sum; the weights are asked."""
    base = make_base(tmp_path / "base", tied=True)
    settings = {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
    pair = [make_adapter(base, tmp_path / str(i), seed=i, **settings) for i in (1, 2)]
    model = AutoModelForCausalLM.from_pretrained(base)
    for path, change in weighted([true_changes(item) for item in pair], [1, 1]).items():
        if path != "lm_head":
            model.get_submodule(path).weight.data += torch.from_numpy(change).float()
    for name, cut in (("all", None), ("cut", Truncation(rank=8))):
        make_soup(SoupConfig(adapters=tuple(pair), weights=(1, 1), truncation=cut), tmp_path / name)
        found = live(base, tmp_path / name)
        torch.testing.assert_close(found, logits_of(model), atol=1e-4, rtol=0)
    assert (live(base, *pair) - logits_of(model)).abs().max() > 0.1
    make_soup(SoupConfig(adapters=tuple(pair), truncation=Truncation(rank=2)), tmp_path / "less")
    assert "lm_head.weight" not in open_weights(tmp_path / "less").entries


def test_energy_gives_each_module_the_ranks_it_needs(tmp_path: Path) -> None:
    _, *pair = two(tmp_path)
    record = make_soup(
        SoupConfig(adapters=tuple(pair), truncation=Truncation(energy=0.9)), tmp_path / "out"
    )
    for path, change in weighted([true_changes(item) for item in pair], [0.5, 0.5]).items():
        squares = np.square(np.linalg.svd(change, compute_uv=False))
        needed = int(np.searchsorted(np.cumsum(squares), 0.9 * squares.sum())) + 1
        assert record["modules"][path]["rank"] == needed
        assert record["modules"][path]["error"] <= math.sqrt(0.1)


METHODS: dict[str, dict[str, list[float]]] = {
    "ties": {"density": [0.5]},
    "dare_ties": {"density": [0.6, 0.3]},
    "della": {"density": [0.5], "epsilon": [0.1]},
    "breadcrumbs_ties": {"density": [0.7], "gamma": [0.05]},
    "sce": {"select_topk": [0.5]},
    "model_stock": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_on_adapters_is_the_method_on_the_folded_models(
    tmp_path: Path, method: str
) -> None:
    """At full rank; modules that only one of them has are unchanged by the other."""
    kind = "same modules" if method == "model_stock" else "other modules"
    base, *pair = two(tmp_path, kind)
    if method == "model_stock":  # it keeps what the changes have in common, so they need something
        pair[1] = perturbed(pair[0], tmp_path / "near")
    weights = (0.7, 0.4) if method not in ("sce", "model_stock") else None
    meant = SoupConfig(
        adapters=tuple(pair),
        weights=weights,
        method=method,
        parameters=METHODS[method],
        truncation=Truncation(rank=48),
        seed=3,
    )
    make_soup(meant, tmp_path / "out")
    each = {"density", "epsilon", "gamma"}
    models = tuple(
        MergeInput(
            model=str(item),
            weight=weights[i] if weights else None,
            parameters={k: v[i % len(v)] for k, v in METHODS[method].items() if k in each},
        )
        for i, item in enumerate(pair)
    )
    shared = {name: values[0] for name, values in METHODS[method].items() if name not in each}
    stage = MergeStage(
        name="m", models=models, method=method, base_model=str(base), parameters=shared
    )
    merged, plain = prepare(stage.merge(), seed=3).weights, open_weights(base)
    changes = true_changes(tmp_path / "out")
    # q in two layers, v and down in three; or seven linear layers in three
    assert len(changes) == (21 if kind == "same modules" else 8)
    for path, change in changes.items():
        expected = read_whole(merged, f"{path}.weight") - read_whole(plain, f"{path}.weight")
        # float32 base weights blur which of nearly equal changes is kept
        apart = np.abs(change - expected) > 1e-5
        assert apart.mean() < 0.005, path
        assert np.abs(expected).max() > 1e-3


def perturbed(adapter: Path, folder: Path) -> Path:
    """A copy with noise."""
    shutil.copytree(adapter, folder)
    file = folder / "adapter_model.safetensors"
    torch.manual_seed(7)
    save_file({n: t + 0.05 * torch.randn_like(t) for n, t in load_file(file).items()}, file)
    return folder


def test_ties_of_two_opposite_changes_keeps_the_stronger(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    first = make_adapter(base, tmp_path / "first", target_modules=["q_proj"])
    second = tmp_path / "second"
    shutil.copytree(first, second)
    file = second / "adapter_model.safetensors"
    tensors = load_file(file)
    flipped = {
        name: -0.5 * tensor if "lora_B" in name else tensor for name, tensor in tensors.items()
    }
    save_file(flipped, file)
    make_soup(
        SoupConfig(adapters=(first, second), method="ties", truncation=Truncation(rank=4)),
        tmp_path / "out",
    )
    expected, found = true_changes(first), true_changes(tmp_path / "out")
    for path, change in expected.items():  # d and -d/2: the sign of d wins, and only d has it
        np.testing.assert_allclose(found[path], change, atol=1e-6)


def peft_changes(
    base: Path, pair: list[Path], weights: list[float], **settings: Any
) -> dict[str, np.ndarray]:
    """What PEFT's add_weighted_adapter makes of two adapters."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), pair[0], "0")
    model.load_adapter(pair[1], "1")
    model.add_weighted_adapter(["0", "1"], weights, "made", **settings)
    found = {}
    for path, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A") and "made" in module.lora_A:
            A, B = (module.lora_A["made"].weight, module.lora_B["made"].weight)
            found[path] = (module.scaling["made"] * (B.double() @ A.double())).detach().numpy()
    return found


def distance(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    apart = math.hypot(*(np.linalg.norm(ours[path] - theirs[path]) for path in ours))
    return apart / math.hypot(*map(np.linalg.norm, ours.values()))


def test_peft_is_met_where_it_is_exact_and_left_where_it_is_not(tmp_path: Path) -> None:
    """cat and svd of plain LoRA are the true sum; linear has cross terms."""
    base, *pair = two(tmp_path, "patterns")
    for item in pair:
        edit_config(item, rank_pattern={}, alpha_pattern={})
    settings = {"target_modules": ATTENTION, "r": 4}
    pair = [make_adapter(base, tmp_path / f"p{i}", seed=i, **settings) for i in (1, 2)]
    weights = [0.6, 0.5]
    exact = weighted([true_changes(entry) for entry in pair], weights)
    make_soup(SoupConfig(adapters=tuple(pair), weights=tuple(weights)), tmp_path / "all")
    make_soup(
        SoupConfig(adapters=tuple(pair), weights=tuple(weights), truncation=Truncation(rank=4)),
        tmp_path / "cut",
    )
    ours, cut = true_changes(tmp_path / "all"), true_changes(tmp_path / "cut")
    assert distance(exact, ours) < 1e-6
    assert distance(peft_changes(base, pair, weights, combination_type="cat"), ours) < 1e-6
    svd = peft_changes(base, pair, weights, combination_type="svd", svd_rank=4)
    assert distance(svd, cut) < 1e-5
    assert distance(exact, peft_changes(base, pair, weights, combination_type="linear")) > 0.3


def test_peft_scales_rslora_twice_and_ours_does_not(tmp_path: Path) -> None:
    """PEFT 0.21 keeps use_rslora with alpha = r, so its sum is sqrt(r) times too large, cat included."""
    base = make_base(tmp_path / "base")
    settings = {"target_modules": ATTENTION, "use_rslora": True}
    pair = [make_adapter(base, tmp_path / f"p{i}", seed=i, **settings) for i in (1, 2)]
    exact = weighted([true_changes(item) for item in pair], [0.5, 0.5])
    make_soup(SoupConfig(adapters=tuple(pair)), tmp_path / "out")
    assert distance(exact, true_changes(tmp_path / "out")) < 1e-6
    theirs = peft_changes(base, pair, [0.5, 0.5], combination_type="cat")
    assert distance(exact, theirs) == pytest.approx(math.sqrt(8) - 1, rel=1e-3)


KEPT: dict[str, dict[str, Any]] = {
    "norms": {"modules_to_save": ["norm"]},
    "head": {"modules_to_save": ["lm_head"]},
    "embedding": {"modules_to_save": ["embed_tokens"]},
    "tokens": {"trainable_token_indices": [3, 7, 1]},
}


@pytest.mark.parametrize("kind", KEPT)
def test_compressing_keeps_what_is_not_low_rank(tmp_path: Path, kind: str) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "a", target_modules=ATTENTION, r=8, **KEPT[kind])
    record = make_soup(
        SoupConfig(adapters=(adapter,), truncation=Truncation(rank=8)), tmp_path / "same"
    )
    assert record["error"] < 1e-12
    expected = live(base, adapter)
    torch.testing.assert_close(live(base, tmp_path / "same"), expected, atol=1e-5, rtol=0)
    make_soup(SoupConfig(adapters=(adapter,), truncation=Truncation(rank=1)), tmp_path / "less")
    before, after = (
        load_file(item / "adapter_model.safetensors") for item in (adapter, tmp_path / "less")
    )
    others = {name: item for name, item in before.items() if "lora_" not in name}
    assert others and all(torch.equal(after[name], other) for name, other in others.items())


def test_the_record_has_the_hashes_of_what_went_in_and_came_out(tmp_path: Path) -> None:
    base, *pair = two(tmp_path)
    make_soup(SoupConfig(adapters=tuple(pair), truncation=Truncation(rank=3)), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "adapter.json").read_text())

    def digest(file: Path) -> str:
        return hashlib.sha256(file.read_bytes()).hexdigest()

    assert [item["model"] for item in record["inputs"]] == list(map(str, pair))
    for source in record["inputs"]:
        assert {Path(file).name for file in source["sha256"]} == {
            "adapter_config.json", "adapter_model.safetensors"
        }  # fmt: skip
        assert all(digest(Path(file)) == sha for file, sha in source["sha256"].items())
    for name, sha in record["outputs"].items():
        assert digest(tmp_path / "out" / name) == sha
    assert (record["method"], record["weights"], record["rank"]) == ("linear", [0.5, 0.5], 3)
    assert record["base_model"] == str(base)


def test_verify_finds_a_changed_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, first, second = two(tmp_path)
    out = tmp_path / "out"
    make_soup(SoupConfig(adapters=(first, second)), out)
    assert main(["verify", str(out)]) == 0
    assert f"{out}: 2 files and 4 inputs have their hashes" in capsys.readouterr().out
    (second / "adapter_config.json").write_text("{}")
    assert main(["verify", str(out)]) == 2
    assert "isn't the file that the adapter was made of: sha256" in capsys.readouterr().err
    edit_config(out, r=1)
    assert main(["verify", str(out)]) == 2
    assert "adapter_config.json: was changed after it was written" in capsys.readouterr().err
    (out / "adapter.json").write_text("{}")
    assert main(["verify", str(out)]) == 2
    assert "adapter.json: isn't whole (KeyError('outputs'))" in capsys.readouterr().err


def test_the_same_soup_is_the_same_bytes(tmp_path: Path) -> None:
    _, *pair = two(tmp_path)
    for name in ("one", "two"):
        meant = SoupConfig(
            adapters=tuple(pair),
            method="dare_ties",
            parameters={"density": [0.5]},
            truncation=Truncation(rank=4),
        )
        make_soup(meant, tmp_path / name)
    first, second = ((tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


def test_a_relative_base_is_still_found_from_the_new_folder(tmp_path: Path) -> None:
    base, *pair = two(tmp_path)
    for item in pair:
        edit_config(item, base_model_name_or_path="../base")
    make_soup(SoupConfig(adapters=tuple(pair)), tmp_path / "deeper" / "out")
    written = json.loads((tmp_path / "deeper" / "out" / "adapter_config.json").read_text())
    assert Path(written["base_model_name_or_path"]) == base.resolve()
    open_weights(tmp_path / "deeper" / "out")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "use_dora.*dualign adapter extract"),
    "saved": ({"modules_to_save": ["norm"]}, "modules_to_save.*norm.*merge the folded models"),
    "tokens": ({"trainable_token_indices": [1]}, "trainable tokens replace rows"),
    "bias": ({"bias": "lora_only"}, "bias: lora_only replaces whole tensors"),
    "lora_bias": ({"lora_bias": True}, "lora_bias: True"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_add_up_is_refused(tmp_path: Path, kind: str) -> None:
    base = make_base(tmp_path / "base")
    settings, message = REFUSED[kind]
    first = make_adapter(base, tmp_path / "first", target_modules=ATTENTION)
    second = make_adapter(base, tmp_path / "second", target_modules=ATTENTION, **settings)
    with pytest.raises(MergeError, match=message):
        make_soup(SoupConfig(adapters=(first, second)), tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_adapters_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    _, first, second = two(tmp_path)
    edit_config(second, revision="abc")
    with pytest.raises(MergeError, match=r"on revision None of .* on 'abc'; if the weights are"):
        make_soup(SoupConfig(adapters=(first, second)), tmp_path / "out")
    edit_config(second, revision=None, ensure_weight_tying=True)
    with pytest.raises(MergeError, match="only one of them has ensure_weight_tying"):
        make_soup(SoupConfig(adapters=(first, second)), tmp_path / "out")
    edit_config(second, ensure_weight_tying=False, base_model_name_or_path="org/other")
    with pytest.raises(MergeError, match=r"on 'org/other'; all must be trained on one base; if"):
        make_soup(SoupConfig(adapters=(first, second)), tmp_path / "out")


def test_adapters_of_other_shapes_are_refused(tmp_path: Path) -> None:
    _, first, second = two(tmp_path)
    file = second / "adapter_model.safetensors"
    wide = {n: torch.cat([t, t], 1) if "lora_A" in n else t for n, t in load_file(file).items()}
    save_file(wide, file)
    with pytest.raises(MergeError, match=r"factors of shapes .* they aren't of one base"):
        make_soup(SoupConfig(adapters=(first, second)), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


def test_a_nan_is_named(tmp_path: Path) -> None:
    _, first, second = two(tmp_path)
    file = second / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[3]
    tensors[name][0, 0] = torch.inf
    save_file(tensors, file)
    with pytest.raises(MergeError, match=f"{re.escape(name)} holds 1 NaN or infinite"):
        make_soup(SoupConfig(adapters=(first, second)), tmp_path / "out")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no rank": ({"method": "ties"}, "ties: the result has all ranks.*--rank or --energy"),
    "method": (
        {"method": "tie", "truncation": Truncation(rank=2)},
        r"'tie' \(did you mean 'ties'\?\)",
    ),
    "slerp": ({"method": "slerp", "truncation": Truncation(rank=2)}, "method 'slerp'"),
    "parameter": (
        {"method": "ties", "truncation": Truncation(rank=2), "parameters": {"densty": [0.5]}},
        r"densty: ties has no such parameter \(did you mean 'density'\?\)",
    ),
    "range": (
        {"method": "ties", "truncation": Truncation(rank=2), "parameters": {"density": [1.5]}},
        "density: expected 1 or less",
    ),
    "count": (
        {
            "method": "ties",
            "truncation": Truncation(rank=2),
            "parameters": {"density": [0.1, 0.2, 0.3]},
        },
        "density has 3 values; expected 1 or 2",
    ),
    "weights": ({"weights": (1, 2, 3)}, "3 weights for 2 adapters"),
    "no weights": (
        {"method": "sce", "truncation": Truncation(rank=2), "weights": (1, 2)},
        "sce: takes no weights",
    ),
    "linear": ({"parameters": {"density": [1]}}, "linear: takes weights and nothing else, not den"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_soup_that_cannot_be_says_why(tmp_path: Path, kind: str) -> None:
    _, *pair = two(tmp_path)
    settings, message = WRONG[kind]
    with pytest.raises(ConfigError, match=message):
        make_soup(SoupConfig(adapters=tuple(pair), **settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tokenizers_that_differ_have_to_be_chosen(tmp_path: Path) -> None:
    _, *pair = two(tmp_path)
    for i, item in enumerate(pair):
        (item / "chat_template.jinja").write_text(f"template {i}")
    with pytest.raises(MergeError, match=r"chat_template.jinja differs from .*--tokenizer-from"):
        make_soup(SoupConfig(adapters=tuple(pair)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    make_soup(SoupConfig(adapters=tuple(pair), tokenizer_from=pair[1]), tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "template 1"


def test_the_command_line_makes_soups_and_compresses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, *pair = map(str, two(tmp_path))
    out = str(tmp_path / "out")
    method = ["--method", "ties", "--set", "density=0.5,0.4", "--set", "normalize=true"]
    assert main(["adapter", "soup", *pair, out, "--weights=1,-0.5", *method, "--rank", "4"]) == 0
    shown = capsys.readouterr().out
    error = json.loads((tmp_path / "out" / "adapter.json").read_text())["error"]
    assert f"21 modules, rank 4; relative error {error:.2e}" in shown
    assert f", 4: {error:.1e}, 8: " in shown
    assert main(["adapter", "compress", out, str(tmp_path / "less"), "--energy", "0.5"]) == 0
    assert main(["adapter", "compress", out, str(tmp_path / "less"), "--rank", "2"]) == 2
    assert "is there already; choose another folder, or use --force" in capsys.readouterr().err
    assert main(["adapter", "compress", out, str(tmp_path / "less"), "--rank=2", "--force"]) == 0
    assert (
        logits_of(
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "less")
        )
        .isfinite()
        .all()
    )
    for wrong, message in (
        (["--weights", "a,b"], "--weights: expected numbers with commas between, found 'a,b'"),
        (["--set", "density"], "--set density: expected NAME=VALUE"),
    ):
        assert main(["adapter", "soup", *pair, str(tmp_path / "no"), *wrong]) == 2
        assert message in capsys.readouterr().err


def test_a_soup_on_the_real_model_gives_the_logits_of_both(tmp_path: Path, embedded: Path) -> None:
    pair = [
        make_adapter(embedded, tmp_path / str(i), seed=i, r=8, target_modules=["q_proj", "up_proj"])
        for i in (1, 2)
    ]
    for name, cut in (("all", None), ("cut", Truncation(rank=16))):
        record = make_soup(
            SoupConfig(adapters=tuple(pair), weights=(1, 1), truncation=cut), tmp_path / name
        )
        assert len(record["modules"]) == 60 and record["error"] < 1e-12
    expected = live(embedded, *pair)
    bound = 1e-5 * float(expected.abs().max())
    for name in ("all", "cut"):
        torch.testing.assert_close(live(embedded, tmp_path / name), expected, atol=bound, rtol=0)


def test_a_folder_that_is_no_adapter_is_an_error(tmp_path: Path) -> None:
    base, first, _ = two(tmp_path)
    with pytest.raises(CheckpointError, match=r"adapter_config.json: no such file"):
        make_soup(SoupConfig(adapters=(first, base)), tmp_path / "out")
    (first / "adapter_model.safetensors").unlink()
    with pytest.raises(DualignError, match=r"adapter_model.safetensors: no such file"):
        make_soup(SoupConfig(adapters=(first, first)), tmp_path / "out")
