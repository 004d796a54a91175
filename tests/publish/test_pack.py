"""Several adapters in one repository: what they share, what vLLM doesn't serve, a card that runs."""

import io
import json
import re
import shlex
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from dualign.checkpoints.patterns import largest_rank
from dualign.cli.main import main
from dualign.errors import PublishError
from dualign.publish.checklist import CheckResult
from dualign.publish.checks.provenance import check_base_weights
from dualign.publish.hub.metadata import HubClient
from dualign.publish.manifest import is_published
from dualign.publish.pack import (
    FOLDER,
    PackedAdapter,
    adapter_names,
    agreement,
    card_of,
    prepare_pack,
    share,
    unserved,
)
from dualign.publish.publish import examine
from dualign.publish.release import PublishRequest, StagedRelease
from dualign.publish.staging import stage_files

from .conftest import COMMIT


class Pack(NamedTuple):
    """The copy that the command left, and what it printed."""

    folder: Path
    printed: str

    @property
    def card(self) -> str:
        return (self.folder / "README.md").read_text()


def request(run_dir: Path) -> PublishRequest:
    return PublishRequest(
        run_dir=run_dir,
        repo_id="someone/pack",
        bases=(f"acme/base@{COMMIT}",),
        license="apache-2.0",
        allow=frozenset({"base_weights"}),
        contents="adapter",
    )


@pytest.fixture(scope="module")
def pack(road: Path, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """What the command leaves, without a token and a hub."""
    from huggingface_hub import constants

    place = tmp_path_factory.mktemp("pack")
    words = [
        "publish",
        str(road / "sft"),
        str(road / "apo"),
        "someone/pack",
        "--allow",
        "base_weights",
    ]
    words += [
        "--license",
        "apache-2.0",
        "--base",
        f"acme/base@{COMMIT}",
        "--out",
        str(place / "copy"),
    ]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.delenv("HF_TOKEN", raising=False)
        patch.setattr(constants, "HF_TOKEN_PATH", str(place / "token"))
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert main(words) == 0
    return Pack(place / "copy", printed.getvalue())


@pytest.mark.slow
def test_each_adapter_is_checked_and_all_agree(pack: Pack) -> None:
    for check in ("sft: logits", "apo: logits", "apo: secrets"):
        assert check in pack.printed
    assert "2 adapters of acme/base" in pack.printed
    command = shlex.split(pack.printed.strip().splitlines()[-1].strip())
    assert command[:2] == ["dualign", "publish"] and command[4] == "someone/pack"
    for file in ("README.md", "tokenizer.json", "adapters/sft/adapter_model.safetensors"):
        assert (pack.folder / file).is_file()


@pytest.mark.slow
def test_the_snippet_of_the_card_loads_all_adapters_and_switches_them(
    pack: Pack, road: Path
) -> None:
    require_running_card(pack.folder, road, pack.card)


def require_running_card(folder: Path, road: Path, card: str) -> None:
    base = road.parent / "base"
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace("someone/pack", str(folder)).replace("acme/base", str(base))
    scope: dict[str, object] = {}
    exec(code.replace("max_new_tokens=512", "max_new_tokens=2"), scope)
    model = scope["model"]
    assert isinstance(model, PeftModel)
    ids = torch.arange(20, 60)[None]
    for name in ("sft", "apo"):
        alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), road / name)
        model.set_adapter(name)
        with torch.inference_mode():
            assert torch.equal(model(ids).logits, alone(ids).logits), name


def packed(name: str, road: Path, folder: Path) -> PackedAdapter:
    """An adapter staged without its checks, which load it in a process of its own."""
    release = examine(request(road / name), HubClient())
    place = folder / FOLDER / name
    place.mkdir(parents=True)
    stage_files(release, place)
    config = json.loads((place / "adapter_config.json").read_text())
    staged = StagedRelease(
        request=release.request,
        folder=place,
        files={},
        checks=(),
        card="",
        message="",
        left_out=(),
        is_outdated=is_published,
    )
    return PackedAdapter(
        name=name,
        release=release,
        staged=staged,
        rank=largest_rank(config),
        unserved=unserved(config),
    )


def test_a_card_has_code_that_runs_and_the_command_of_vllm(road: Path, tmp_path: Path) -> None:
    adapters = [packed(name, road, tmp_path) for name in ("sft", "apo")]
    share(adapters[0], tmp_path)
    card = card_of(adapters)
    require_running_card(tmp_path, road, card)
    (command,) = re.findall(r"vllm serve .*?```", card, re.DOTALL)
    words = command.replace("\\\n", " ").split()
    assert words[:3] == ["vllm", "serve", "acme/base"]
    # sft has rank 4, apo on it 4 + 2; vLLM's smallest that holds both is 8.
    assert [adapter.rank for adapter in adapters] == [4, 6]
    assert words[words.index("--max-lora-rank") + 1] == "8"
    modules = words[words.index("--lora-modules") + 1 : -1]
    assert modules == ["sft=pack/adapters/sft", "apo=pack/adapters/apo"]
    unserved_too = replace(adapters[1], unserved=("DoRA",))
    card = card_of([adapters[0], unserved_too])
    assert "| 6 | doesn't serve it: DoRA |" in card
    assert "--lora-modules sft=pack/adapters/sft\n" in card and "--max-lora-rank 8" in card
    assert "Published although" not in card
    failure = CheckResult(name="base_weights", state="allowed", message="not the hub's")
    both = [
        replace(adapter, staged=replace(adapter.staged, checks=(failure,))) for adapter in adapters
    ]
    expected = (
        "> **Published although the check `base_weights` failed (sft, apo):** not the hub's\n"
    )
    assert card_of(both).count(expected) == 1
    assert card_of([both[0], adapters[1]]).count(expected.replace("sft, apo", "sft")) == 1
    template = adapters[1].staged.folder / "chat_template.jinja"
    assert agreement(adapters).state == "ok"
    text = template.read_text()
    template.unlink()  # a link to the run directory's file
    template.write_text(text + "{# other #}")
    check = agreement(adapters)
    assert check.state == "failed"
    assert check.message.startswith("chat_template.jinja: sft has ")


def test_weights_among_adapters_are_refused_before_an_adapter_is_loaded(
    road: Path, tmp_path: Path
) -> None:
    asked = [request(road / name) for name in ("sft", "merged")]
    with pytest.raises(
        PublishError, match=r"merged: holds weights and no adapter, .* leave it out"
    ):
        prepare_pack(asked, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PublishError, match="--with: several run directories"):
        prepare_pack([replace(asked[0], exports=(tmp_path,)), asked[0]], tmp_path)


def test_a_source_of_one_adapter_has_its_license_said_and_a_source_of_none_is_refused(
    road: Path, tmp_path: Path
) -> None:
    said = replace(request(road / "sft"), license_of={"pairs": "mit"}, place="adapters/sft")
    assert "pairs" not in examine(said, HubClient(reachable=False)).license.of
    asked = [replace(request(road / name), license_of={"pears": "mit"}) for name in ("sft", "apo")]
    with pytest.raises(PublishError, match="pears=mit: no adapter has a source of that name"):
        prepare_pack(asked, tmp_path)


def test_another_base_sends_weights_to_a_repository_of_their_own(road: Path) -> None:
    release = examine(
        replace(request(road / "sft"), place="adapters/sft"), HubClient(reachable=False)
    )
    outcome = check_base_weights(release, HubClient(reachable=False))
    assert outcome and "in a repository of their own, --what weights" in outcome.message


def test_stages_of_one_name_are_called_after_their_runs() -> None:
    names = adapter_names([Path("/r/law/sft"), Path("/r/code.v2/sft")])
    assert names == ["law-sft", "code-v2-sft"]
    assert adapter_names([Path("/r/a"), Path("/r/b")]) == ["a-adapter", "b"]
    with pytest.raises(PublishError, match="would both be adapters/x-sft; rename one"):
        adapter_names([Path("/r/x/sft"), Path("/q/x/sft")])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "whole tensors"),
        ({"trainable_token_indices": {"embed_tokens": [1]}}, "whole tensors"),
        ({"r": 1024}, "rank 1024, and it takes 512 at most"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "LoRA on embed_tokens"),
        ({"alpha_pattern": {"q_proj": 4}}, "ranks or scales that differ by layer"),
    ],
)
def test_what_vllm_does_not_serve_is_named(settings: dict[str, object], reason: str) -> None:
    plain = {"r": 8, "target_modules": ["q_proj"], "bias": "none"}
    assert unserved(plain) == ()
    (said,) = unserved({**plain, **settings})
    assert said.startswith(reason)
