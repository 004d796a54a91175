"""A merge from folder to folder."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualign.checkpoints.shards import write_weights
from dualign.errors import CheckpointError, MergeError
from dualign.merging import merge
from dualign.merging.config import MergeInput, MergeStage
from dualign.merging.mergekit.load import load
from dualign.merging.output import merge_into
from dualign.merging.validate_output import recompute_tensors
from dualign.rundir import Outcome

from .conftest import WORDS, MakeModel


def run(out: Path, weights: dict[Path, float], **settings: object) -> Outcome:
    out.mkdir(exist_ok=True)
    models = tuple(MergeInput(model=str(path), weight=weight) for path, weight in weights.items())
    stage = MergeStage(name="merged", models=models, **settings)  # type: ignore[arg-type]
    return merge.run(stage, out, seed=0)


def test_merged_weights_are_the_normalized_sum(tmp_path: Path, make_model: MakeModel) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2)
    outcome = run(tmp_path / "out", {a: 3.0, b: 1.0})
    merged, first, second = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "out", a, b)
    )
    assert set(merged) == set(first)
    for name, tensor in merged.items():
        torch.testing.assert_close(
            tensor, 0.75 * first[name] + 0.25 * second[name], atol=1e-7, rtol=0
        )
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert [used["applied"] for used in record["parameters"]] == [[0.75, 0.25]]
    assert outcome.metrics["tensors"] == len(first)
    assert len(outcome.checks["verified"]["tensors"]) == 3


def test_a_model_merged_with_itself_is_the_same_model(
    tmp_path: Path, make_model: MakeModel
) -> None:
    a, copy = make_model("a", seed=1, dtype=torch.bfloat16), make_model("copy", seed=1)
    run(tmp_path / "out", {a: 0.9, copy: 0.1}, dtype="bfloat16")
    found, expected = (load_file(item / "model.safetensors") for item in (tmp_path / "out", a))
    assert {name: tensor.dtype for name, tensor in found.items()} == dict.fromkeys(
        expected, torch.bfloat16
    )


def test_merging_is_deterministic(tmp_path: Path, make_model: MakeModel) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2)
    for name in ("once", "again"):
        run(tmp_path / name, {a: 0.9, b: 0.1})
    files = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in files:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_merged_folder_loads_with_its_tokenizer_and_type(
    tmp_path: Path, make_model: MakeModel
) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2)
    run(tmp_path / "out", {a: 1.0, b: 1.0}, dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.convert_tokens_to_ids("two") == 4
    assert (tmp_path / "out" / "generation_config.json").is_file()


def test_hashes_of_the_inputs_are_recorded(tmp_path: Path, make_model: MakeModel) -> None:
    import hashlib

    a, b = make_model("a", seed=1), make_model("b", seed=2)
    models = run(tmp_path / "out", {a: 1.0, b: 1.0}).metrics["models"]
    file = b / "model.safetensors"
    assert models[1]["sha256"] == {str(file): hashlib.sha256(file.read_bytes()).hexdigest()}


def test_an_adapter_merges_as_its_folded_model(tmp_path: Path, make_model: MakeModel) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(a),
        LoraConfig(target_modules=["q_proj"], init_lora_weights=False, use_rslora=True),
    )
    model.save_pretrained(tmp_path / "adapter")
    run(tmp_path / "out", {tmp_path / "adapter": 0.5, b: 0.5})
    live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(a), tmp_path / "adapter")
    folded, other = live.merge_and_unload().state_dict(), load_file(b / "model.safetensors")
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(tensor, (folded[name] + other[name]) / 2, atol=1e-6, rtol=0)
    # The adapter has no tokenizer of its own, so its base's is carried over.
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("two") == 4


def test_sharded_inputs_and_outputs_hold_the_same_tensors(
    tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2)
    model = AutoModelForCausalLM.from_pretrained(b)
    (b / "model.safetensors").unlink()
    model.save_pretrained(b, max_shard_size="2KB")
    run(tmp_path / "whole", {a: 1.0, b: 1.0})
    default = write_weights.__kwdefaults__ or {}
    monkeypatch.setitem(default, "shard_bytes", 3000)
    outcome = run(tmp_path / "shards", {a: 1.0, b: 1.0})
    assert outcome.metrics["shards"] > 2
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "shards").state_dict()
    for name, tensor in expected.items():
        assert torch.equal(reloaded[name], tensor)
    for file in (tmp_path / "shards").glob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            names = list(shard.keys())
            sizes = [shard.get_tensor(name).nbytes for name in names]
        assert sum(sizes) <= 3000 or len(sizes) == 1


def test_files_of_an_interrupted_merge_do_not_survive(
    tmp_path: Path, make_model: MakeModel
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model-00001-of-00002.safetensors").write_bytes(b"half")
    (out / "model.safetensors.index.json").write_text("{}")
    run(out, {make_model("a", seed=1): 1.0})
    assert sorted(path.name for path in out.glob("model*")) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_theta": 5e5}, r"rope_parameters: .*10000.0.* in .*a, .*500000.0.* in .*b"),
        ({"max_position_embeddings": 64}, r"max_position_embeddings: 32 in .*a, 64 in .*b"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps: 1e-06 in .*a, 1e-05 in .*b"),
    ],
)
def test_config_differences_are_refused_until_one_is_chosen(
    tmp_path: Path, make_model: MakeModel, settings: dict[str, float], message: str
) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2, **settings)
    with pytest.raises(MergeError, match=message) as caught:
        run(tmp_path / "out", {a: 1.0, b: 1.0})
    assert "set config_from" in str(caught.value)
    assert not list((tmp_path / "out").iterdir())
    outcome = run(tmp_path / "out", {a: 1.0, b: 1.0}, config_from=str(b))
    key = message.split(":")[0]
    chosen, theirs = (
        json.loads((item / "config.json").read_text())[key] for item in (tmp_path / "out", b)
    )
    assert chosen == theirs
    assert key in outcome.checks["decided"]


def test_a_config_that_leaves_out_a_default_is_no_difference(
    tmp_path: Path, make_model: MakeModel
) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2)
    config = json.loads((b / "config.json").read_text())
    theta = config.pop("rope_parameters")[
        "rope_theta"
    ]  # as older releases of transformers write it
    config = {key: item for key, item in config.items() if key not in ("hidden_act", "mlp_bias")}
    (b / "config.json").write_text(json.dumps({**config, "rope_theta": theta}))
    run(tmp_path / "out", {a: 1.0, b: 1.0})


def test_another_architecture_with_the_same_tensors_is_refused(
    tmp_path: Path, make_model: MakeModel
) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2)
    config = json.loads((b / "config.json").read_text())
    config |= {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3"}
    (b / "config.json").write_text(json.dumps({**config, "no_rope_layers": [1, 0]}))
    with pytest.raises(MergeError, match="architectures"):
        run(tmp_path / "out", {a: 1.0, b: 1.0})


def test_tied_and_untied_models_are_refused_even_with_config_from(
    tmp_path: Path, make_model: MakeModel
) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2, tie_word_embeddings=False)
    with pytest.raises(MergeError, match=r"tie_word_embeddings: True in .*a, False in .*b"):
        run(tmp_path / "out", {a: 1.0, b: 1.0}, config_from=str(a))


def test_other_shapes_and_other_layers_are_refused_by_tensor(
    tmp_path: Path, make_model: MakeModel
) -> None:
    a = make_model("a", seed=1)
    wide = make_model("wide", seed=2, intermediate_size=40)
    deep = make_model("deep", seed=2, num_hidden_layers=3)
    with pytest.raises(MergeError, match=r"mlp.down_proj.weight is \(16, 24\) and \(16, 40\)"):
        run(tmp_path / "out", {a: 1.0, wide: 1.0}, config_from=str(a))
    with pytest.raises(MergeError, match=r"only .*deep has the tensor model.layers.2"):
        run(tmp_path / "out", {a: 1.0, deep: 1.0}, config_from=str(a))


def test_another_vocabulary_is_refused_by_token(tmp_path: Path, make_model: MakeModel) -> None:
    a = make_model("a", seed=1)
    b = make_model("b", seed=2, words=(*WORDS[:3], "one", "three", "two"))
    with pytest.raises(MergeError, match=r"tokenizers differ: 'three' is 5 in .*a and 4 in .*b"):
        run(tmp_path / "out", {a: 1.0, b: 1.0}, config_from=str(a))


def test_a_stage_takes_the_vocabulary_of_the_model_it_names(
    tmp_path: Path, make_model: MakeModel
) -> None:
    a = make_model("a", seed=1)
    b = make_model("b", seed=2, words=("<pad>", "<end>", "<unk>", "two", "one", "four"))
    outcome = run(tmp_path / "out", {a: 1.0, b: 1.0}, tokenizer_from=str(a))
    name = "model.embed_tokens.weight"
    found, first, second = (
        load_file(x / "model.safetensors")[name] for x in (tmp_path / "out", a, b)
    )
    torch.testing.assert_close(found[3], (first[3] + second[4]) / 2)  # "one"
    torch.testing.assert_close(found[5], first[5])  # "three", which b doesn't have
    assert outcome.checks["decided"][f"tokens of {b} left out"]["tokens"] == ["four"]


@pytest.mark.parametrize(
    ("settings", "key"), [({"template": "other"}, "chat_template"), ({"words": None}, "tokenizer")]
)
def test_another_template_or_none_is_refused_until_one_is_chosen(
    tmp_path: Path, make_model: MakeModel, settings: dict[str, str | None], key: str
) -> None:
    a, b = make_model("a", seed=1, **settings), make_model("b", seed=2)
    with pytest.raises(MergeError, match=f"{key}: .*set config_from"):
        run(tmp_path / "out", {a: 1.0, b: 1.0})
    run(tmp_path / "out", {a: 1.0, b: 1.0}, config_from=str(b))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "{{ messages }}"


def test_another_end_token_is_refused_until_one_is_chosen(
    tmp_path: Path, make_model: MakeModel
) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2)
    config = json.loads((b / "tokenizer_config.json").read_text())
    (b / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "three"}))
    with pytest.raises(MergeError, match=r"eos_token: '<end>' in .*a, 'three' in .*b"):
        run(tmp_path / "out", {a: 1.0, b: 1.0})


def test_types_that_differ_need_a_choice(tmp_path: Path, make_model: MakeModel) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2, dtype=torch.float16)
    with pytest.raises(MergeError, match=r"float32 in .*a and float16 in .*set dtype"):
        run(tmp_path / "out", {a: 1.0, b: 1.0})
    run(tmp_path / "out", {a: 1.0, b: 1.0}, dtype="float32")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_is_named_by_file_and_tensor(
    tmp_path: Path, make_model: MakeModel, value: float
) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2)
    spoil(b, "model.norm.weight", value)
    file = b / "model.safetensors"
    with pytest.raises(MergeError, match=rf"{file}: model.norm.weight holds NaN or inf.* at \[3\]"):
        run(tmp_path / "out", {a: 1.0, b: 1.0})


def test_a_sum_that_overflows_the_written_type_is_named(
    tmp_path: Path, make_model: MakeModel
) -> None:
    a = make_model("a", seed=1)
    spoil(a, "model.norm.weight", 1e6)
    with pytest.raises(MergeError, match=r"norm.weight would hold 1000000.0 at element 3"):
        run(tmp_path / "out", {a: 1.0}, dtype="float16")


def test_impossible_weights_are_refused_when_the_stage_is_run(
    tmp_path: Path, make_model: MakeModel
) -> None:
    with pytest.raises(MergeError, match=r"merged: models: .*add up to 0"):
        run(tmp_path / "out", {make_model("a", seed=1): 1.0, make_model("b", seed=2): -1.0})


def test_a_tensor_that_was_changed_on_disk_is_found_by_verification(
    tmp_path: Path, make_model: MakeModel
) -> None:
    a, b = make_model("a", seed=1), make_model("b", seed=2)
    run(tmp_path / "out", {a: 1.0, b: 1.0})
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    models = (MergeInput(model=str(a)), MergeInput(model=str(b)))
    prepared = merge.prepare(MergeStage(name="merged", models=models).merge(), seed=0)
    nearly = {name: tensor * (1 + 1e-5) for name, tensor in tensors.items()}
    save_file(nearly, tmp_path / "out" / "model.safetensors")
    with pytest.raises(MergeError, match="reads back differently from what the inputs give"):
        recompute_tensors(tmp_path / "out", prepared.weights, seed=0)


def spoil(folder: Path, name: str, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name][3] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone: no such folder"):
        run(tmp_path / "out", {tmp_path / "gone": 1.0})


def test_a_base_and_an_adapter_named_together_merge_as_the_folded_model(
    tmp_path: Path, make_model: MakeModel
) -> None:
    a = make_model("a", seed=1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(a),
        LoraConfig(target_modules=["q_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    written = tmp_path / "adapter" / "adapter_config.json"
    written.write_text(
        json.dumps({**json.loads(written.read_text()), "base_model_name_or_path": "gone"})
    )
    results = {}
    for name, reference in (("text", "a+adapter"), ("keys", "{model: {path: a}, lora: adapter}")):
        (tmp_path / "m.yml").write_text(
            f"merge_method: linear\nmodels: [{{model: {reference}, parameters: {{weight: 1}}}}]\n"
        )
        merge_into(load(tmp_path / "m.yml"), tmp_path / name)
        results[name] = load_file(tmp_path / name / "model.safetensors")
    folded = model.merge_and_unload().state_dict()
    for name, tensor in results["text"].items():
        torch.testing.assert_close(tensor, folded[name], atol=1e-6, rtol=0)
        assert torch.equal(tensor, results["keys"][name])


def test_a_revision_is_asked_of_the_hub(
    tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def from_hub(name: str, *, revision: str | None = None, pickles: bool = False) -> Path:
        asked.append((name, revision, pickles))
        return make_model("fetched", seed=1)

    monkeypatch.setattr("dualign.checkpoints.weights.from_hub", from_hub)
    (tmp_path / "m.yml").write_text("merge_method: passthrough\nmodels: [{model: org/name@abc}]\n")
    merge_into(load(tmp_path / "m.yml"), tmp_path / "out")
    assert asked == [("org/name", "abc", False)]
