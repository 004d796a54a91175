"""Faults planted in a run directory that was sound: each is found by its check, with a message that says what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from dualign import engine
from dualign.errors import PublishError
from dualign.publish.hub.metadata import HubClient
from dualign.publish.publish import examine, finish, stage_and_check
from dualign.publish.release import PublishRequest
from dualign.recipe import load_recipe
from tests.publish.conftest import COMMIT, SCRIPT, edit_json, recipe

Plant = Callable[[Path], None]
TOKEN = "hf_" + "q" * 34


WHOLE = ("secrets", "paths", "card")
"""Checks on all that goes, card and run.json included; drawing the figures takes a second."""


def looked_at(
    request: PublishRequest, folder: Path, *, whole: bool = True
) -> dict[str, tuple[str, str]]:
    """Every check that needs no model: name -> (state, found). `whole`: those of WHOLE too."""
    folder.mkdir()
    hub = HubClient(reachable=False)
    subject = examine(request, hub)
    found = stage_and_check(subject, folder, hub)
    if whole:
        found = list(finish(subject, folder, found).checks)
    return {entry.name: (entry.state, entry.message) for entry in found}


def tensor_nan(name: str) -> Plant:
    def plant(run: Path) -> None:
        weights = load_file(run / name)
        first = sorted(weights)[0]
        weights[first].view(-1)[3] = float("nan")
        save_file(weights, run / name, {"format": "pt"})

    return plant


def cut_short(run: Path) -> None:
    data = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(data[:-100])


def pickled(run: Path) -> None:
    weights = load_file(run / "adapter_model.safetensors")
    torch.save(weights, run / "adapter_model.bin")
    (run / "adapter_model.safetensors").unlink()


def pickled_weights(run: Path) -> None:
    torch.save(load_file(run / "model.safetensors"), run / "pytorch_model.bin")
    (run / "model.safetensors").unlink()


def linked_away(run: Path) -> None:
    target = run.parent.parent / "elsewhere.json"
    (run / "generation_config.json").rename(target)
    (run / "generation_config.json").symlink_to(target)


def token_in_recipe(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    record["config"]["note"] = f"fetched with {TOKEN}"
    (run / "run.json").write_text(json.dumps(record, indent=2))


def key_in_template(run: Path) -> None:
    with (run / "chat_template.jinja").open("a") as file:
        file.write("{#- -----BEGIN OPENSSH PRIVATE KEY----- #}")


def path_in_template(run: Path) -> None:
    with (run / "chat_template.jinja").open("a") as file:
        file.write("{#- see /home/ada/notes.txt #}")


def other_template(run: Path) -> None:
    text = (run / "chat_template.jinja").read_text()
    (run / "chat_template.jinja").write_text(
        text.replace("<|im_start|>assistant", "<|im_start|>bot")
    )


def parent_dropped(run: Path) -> None:
    """The adapter as if only the last stage's were saved: the parent's half is gone."""
    weights = load_file(run / "adapter_model.safetensors")
    halves = {
        name: tensor[4:].contiguous() if "lora_A" in name else tensor[:, 4:].contiguous()
        for name, tensor in weights.items()
    }
    save_file(halves, run / "adapter_model.safetensors", {"format": "pt"})
    edit_json(run / "adapter_config.json", r=2, lora_alpha=2)


def parent_rounded(run: Path) -> None:
    weights = load_file(run / "adapter_model.safetensors")
    rounded = {name: tensor.bfloat16().float() for name, tensor in weights.items()}
    save_file(rounded, run / "adapter_model.safetensors", {"format": "pt"})


def base_is_adapter(run: Path) -> None:
    edit_json(run / "adapter_config.json", base_model_name_or_path=str(run.parent / "sft"))


def unproven(run: Path) -> None:
    edit_json(run / "run.json", checks={})


def never_stops(run: Path) -> None:
    edit_json(run / "generation_config.json", eos_token_id=1)


def own_code(run: Path) -> None:
    edit_json(run / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})


def no_config_recorded(run: Path) -> None:
    edit_json(run / "run.json", config=None)


def parent_gone(run: Path) -> None:
    (run.parent / "sft" / "run.json").unlink()


def parent_redone(run: Path) -> None:
    edit_json(run.parent / "sft" / "run.json", fingerprint="0" * 64)


def measured_before(run: Path) -> None:
    record = json.loads((run.parent / "eval" / "run.json").read_text())
    record["parents"][run.name] = "0" * 64
    (run.parent / "eval" / "run.json").write_text(json.dumps(record))


def without(name: str) -> Plant:
    return lambda run: (run / name).unlink()


def nothing(run: Path) -> None:
    """The fault is in what was asked for."""


FAULTS = [
    ("merged", tensor_nan("model.safetensors"), {}, "weights", "holds NaN or infinite values, first at element 3"),
    ("apo", tensor_nan("adapter_model.safetensors"), {}, "weights", "holds NaN or infinite values"),
    ("merged", cut_short, {}, "weights", "not a whole safetensors file"),
    ("apo", pickled, {}, "files", "adapter_model.bin is a pickle, which runs code when it is read: save it as safetensors"),
    ("merged", pickled_weights, {}, "files", "the weights are a pickle (pytorch_model.bin)"),
    ("merged", linked_away, {}, "files", "outside of the model folder; copy the file there instead"),
    ("merged", without("tokenizer.json"), {}, "files", "tokenizer.json is missing: nobody can write a prompt"),
    ("merged", without("tokenizer_config.json"), {}, "files", "tokenizer_config.json is missing"),
    ("merged", without("config.json"), {}, "files", "config.json is missing"),
    ("merged", token_in_recipe, {}, "secrets", "run.json:"),
    ("merged", token_in_recipe, {}, "secrets", "holds a Hugging Face token: take it out of the run directory"),
    ("merged", key_in_template, {}, "secrets", "chat_template.jinja:"),
    ("merged", path_in_template, {}, "paths", "holds a path of this machine: of no use to others"),
    ("apo", other_template, {}, "doctor", "template_not_trained"),
    ("merged", never_stops, {}, "doctor", "generation_never_stops"),
    ("merged", own_code, {}, "code", "config.json has auto_map: the model needs code to load"),
    ("apo", parent_dropped, {}, "composition", "its rank is 2, and the stages trained sft 4 + apo 2: an adapter is missing in it; run apo again"),
    ("apo", parent_rounded, {}, "composition", "doesn't hold the adapter of sft that it was trained on"),
    ("apo", base_is_adapter, {}, "composition", "its base, sft, is an adapter itself"),
    ("apo", unproven, {}, "composition", "run.json has no proof that the saved adapter gives the trained model's logits"),
    ("merged", parent_gone, {}, "lineage", "was made from sft, and"),
    ("merged", parent_redone, {}, "lineage", "sft was run again after"),
    ("merged", measured_before, {}, "lineage", "eval measured an earlier merged: its figures aren't of these weights"),
    ("merged", nothing, {"bases": ()}, "base", "which exists on this machine only: say what it is on the hub, --base ID@REVISION"),
    ("merged", nothing, {"bases": ("acme/base",)}, "base", "acme/base: the commit it was trained on isn't known"),
    ("apo", nothing, {}, "base_weights", "acme/base can't be reached, so it isn't known whether its weights are those trained on"),
    ("merged", nothing, {"license": None}, "license", "nothing is known of acme/base, pairs, train: --license-of acme/base=ID"),
    ("merged", nothing, {"license": "apache2"}, "license", "'apache2' isn't a license id that the hub knows (did you mean 'apache-2.0'?)"),
    ("merged", nothing, {"languages": ("English",)}, "card", "language: 'English' isn't an ISO 639 code such as en"),
]  # fmt: skip


def from_outside(run: Path) -> tuple[str, ...]:
    """Make the stage one that started from an adapter of somebody else's, not from `sft`.

    Returns the values of --base for it.
    """
    base = json.loads((run.parent / "sft" / "run.json").read_text())["config"]["model"]
    outside = run.parent.parent / "theirs"
    shutil.copytree(run.parent / "sft", outside)
    (outside / "run.json").unlink()
    record = json.loads((run / "run.json").read_text())
    record["config"]["model"] = str(outside)
    edit_json(run / "run.json", config=record["config"], parents={})
    return (f"{outside}=acme/theirs@{COMMIT}", f"{base}=acme/base@{COMMIT}")


def test_an_adapter_that_no_stage_made_may_be_the_start(
    copied: Path, asked: Callable[..., PublishRequest], tmp_path: Path
) -> None:
    bases = from_outside(copied / "apo")
    request = asked(copied / "apo", bases=bases)
    found = looked_at(request, tmp_path / "staged", whole=False)
    assert found["composition"] == ("ok", "theirs (rank 4) + apo (rank 2) on the base, exactly")
    parent_dropped(copied / "apo")
    state, message = looked_at(request, tmp_path / "again", whole=False)["composition"]
    assert state == "failed"
    assert "its rank is 2, and the stages trained theirs 4 + apo 2" in message


def test_modules_that_one_of_two_adapters_has_are_no_fault(
    copied: Path, asked: Callable[..., PublishRequest], tmp_path: Path
) -> None:
    """The parent on all modules, the stage on some of them."""
    bases = from_outside(copied / "apo")
    file = copied / "apo" / "adapter_model.safetensors"
    weights = load_file(file)
    for name in [name for name in weights if "down_proj" in name]:
        half = weights[name][:4] if "lora_A" in name else weights[name][:, :4]
        weights[name] = half.contiguous()
    save_file(weights, file, {"format": "pt"})
    scale = {"rank_pattern": {"down_proj": 4}, "alpha_pattern": {"down_proj": 4}}
    edit_json(copied / "apo" / "adapter_config.json", **scale)
    found = looked_at(asked(copied / "apo", bases=bases), tmp_path / "staged", whole=False)
    assert found["composition"][0] == "ok", found["composition"]


@pytest.mark.slow
def test_ranks_by_layer_and_a_start_that_is_taken_away_add_up(
    learnt: Path, asked: Callable[..., PublishRequest], tmp_path: Path
) -> None:
    """q_proj: 4 of sft, and twice 1 of apo; down_proj: none of apo."""
    plan = recipe(learnt)
    del plan["stages"][3:]
    plan["stages"][1]["lora"] |= {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"o_proj": 1}}
    plan["stages"][2]["lora"] |= {"init_lora_weights": "pissa", "rank_pattern": {"q_proj": 1}}
    plan["stages"][2]["lora"]["exclude_modules"] = ["down_proj"]
    (tmp_path / "make.py").write_text(SCRIPT)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    overrides = [f"output_dir={tmp_path / 'out'}"]
    engine.run(load_recipe(tmp_path / "recipe.yaml", overrides), say=lambda text: None)
    found = looked_at(asked(tmp_path / "out" / "apo"), tmp_path / "staged", whole=False)
    words = "sft (rank 4) + apo (rank 4) on the base, exactly"
    assert found["composition"] == ("ok", words)


@pytest.mark.parametrize(
    ("stage", "plant", "asked_for", "name", "message"),
    FAULTS,
    ids=[f"{number}-{name}" for number, (_, _, _, name, _) in enumerate(FAULTS)],
)
def test_a_planted_fault_is_found(
    copied: Path,
    asked: Callable[..., PublishRequest],
    tmp_path: Path,
    stage: str,
    plant: Plant,
    asked_for: dict,
    name: str,
    message: str,
) -> None:
    plant(copied / stage)
    request = asked(copied / stage, **asked_for)
    found = looked_at(request, tmp_path / "staged", whole=name in WHOLE)
    state, said = found[name]
    assert state == "failed"
    assert message in said
    assert all(TOKEN not in text for _, text in found.values()), "a secret is never shown"


@pytest.mark.parametrize("stage", ["sft", "apo", "folded", "merged"])
def test_a_sound_run_passes_every_check_but_that_on_a_base_out_of_reach(
    copied: Path, asked: Callable[..., PublishRequest], tmp_path: Path, stage: str
) -> None:
    found = looked_at(asked(copied / stage), tmp_path / "staged", whole=stage == "merged")
    failed = [name for name, (state, _) in found.items() if state == "failed"]
    assert failed == ([] if stage == "merged" else ["base_weights"])


def test_all_faults_are_told_at_once(
    copied: Path, asked: Callable[..., PublishRequest], tmp_path: Path
) -> None:
    for plant in (tensor_nan("model.safetensors"), token_in_recipe, parent_redone, own_code):
        plant(copied / "merged")
    found = looked_at(asked(copied / "merged", license=None), tmp_path / "staged")
    failed = {name for name, (state, _) in found.items() if state == "failed"}
    assert {"weights", "secrets", "lineage", "code", "license"} <= failed


def test_what_the_user_accepts_is_published_and_told(
    copied: Path, asked: Callable[..., PublishRequest], tmp_path: Path
) -> None:
    found = looked_at(asked(copied / "apo", allow=frozenset({"base_weights"})), tmp_path / "staged")
    assert found["base_weights"][0] == "allowed"
    card = (tmp_path / "staged" / "README.md").read_text()
    assert "Published although the check `base_weights` failed" in card


def test_a_record_that_lacks_what_is_needed_is_refused(copied: Path) -> None:
    no_config_recorded(copied / "merged")
    with pytest.raises(
        PublishError, match=r"run.json: config isn't there as `dualign run` writes it"
    ):
        examine(
            PublishRequest(run_dir=copied / "merged", repo_id="a/b"), HubClient(reachable=False)
        )


def test_no_token_can_be_accepted(
    copied: Path, asked: Callable[..., PublishRequest], tmp_path: Path
) -> None:
    token_in_recipe(copied / "merged")
    request = asked(copied / "merged", allow=frozenset({"secrets"}))
    assert looked_at(request, tmp_path / "staged")["secrets"][0] == "failed"


@pytest.mark.parametrize(
    ("stage", "asked_for", "message"),
    [
        ("eval", {}, "a stage of kind eval leaves no model; publish one of: apo, folded, merged, sft"),
        ("", {}, "has no run.json, so nothing is known of how it was made"),
        ("nowhere", {}, "no such folder; expected a stage's run directory"),
        ("merged", {"contents": "adapter"}, "holds weights and no adapter, so --what adapter can't be met"),
        ("merged", {"bases": ("stage:x=acme/base",)}, "--base stage:x=acme/base: the run starts from"),
        ("merged", {"bases": ("base",)}, "expected a hub id such as owner/name"),
        ("merged", {"license_of": {"tarin": "mit"}}, "--license-of tarin=mit: the run has no source of that name; it has acme/base, train, pairs"),
        ("merged", {"repo_id": "nobody"}, "nobody: expected owner/name"),
        ("merged", {"repo_id": "a b/c"}, "a b/c: not a hub id"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_once(
    road: Path, stage: str, asked_for: dict, message: str
) -> None:
    given = {"bases": (f"acme/base@{COMMIT}",), "repo_id": "someone/tiny", **asked_for}
    with pytest.raises(PublishError) as caught:
        examine(PublishRequest(run_dir=road / stage, **given), HubClient(reachable=False))
    assert message in str(caught.value)
