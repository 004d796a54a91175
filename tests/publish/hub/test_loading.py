"""What was uploaded, loaded by its id: plain transformers and peft, an empty cache, a process that imports no dualign."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dualign.checkpoints.adapters import fold
from dualign.data.config import DataConfig, SourceConfig
from dualign.sft.config import SFTStage
from dualign.sft.train import run as run_sft
from dualign.training.adapter import AdapterConfig
from tests.publish.hub.client import environment
from tests.publish.hub.conftest import CARD, REPO, Machine
from tests.publish.hub.server import Hub
from tests.training.conftest import rows, save_model, tokenizer  # noqa: F401

COMPARE = """
import json, sys
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

merged, adapter, base, revision = json.loads(sys.argv[1])
ids = torch.arange(40)[None] % 300

def logits(model):
    with torch.no_grad():
        return model.eval()(ids).logits

wanted = logits(AutoModelForCausalLM.from_pretrained(merged))
found = {"merged": logits(AutoModelForCausalLM.from_pretrained("ada/merged"))}
start = AutoModelForCausalLM.from_pretrained("ada/base", revision=revision)
plain = logits(start)
found["adapter"] = logits(PeftModel.from_pretrained(start, "ada/adapter"))
found["adapter, base by its config"] = logits(AutoPeftModelForCausalLM.from_pretrained("ada/adapter"))
local = AutoModelForCausalLM.from_pretrained(base)
exact = logits(PeftModel.from_pretrained(local, adapter))
assert (exact - plain).abs().max() > 1e-3, "the adapter does something"
ours, theirs = AutoTokenizer.from_pretrained(merged), AutoTokenizer.from_pretrained("ada/merged")
assert "dualign" not in sys.modules
turn = [{"role": "user", "content": "Add 3, 4, 5."}]
print(json.dumps({
    "merged": torch.equal(wanted, found["merged"]),
    "adapter": torch.equal(exact, found["adapter"]),
    "adapter, base by its config": torch.equal(exact, found["adapter, base by its config"]),
    "merged is the adapter": float((wanted - exact).abs().max()),
    "renders": [
        one.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=mode)
        for one in (ours, theirs) for mode in (True, False)
    ],
}))
"""


@pytest.fixture(scope="module")
def run_dirs(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer,  # noqa: F811
    rows: Path,  # noqa: F811
) -> dict[str, Path]:
    """A base, an SFT adapter on it, and both folded."""
    folder = tmp_path_factory.mktemp("runs")
    base = save_model(folder / "base", tokenizer)
    adapter = folder / "sft"
    adapter.mkdir()
    data = DataConfig(sources=(SourceConfig(path=str(rows / "train.jsonl")),), max_tokens=128)
    train = {
        "max_steps": 6,
        "learning_rate": 2e-2,
        "per_device_train_batch_size": 2,
        "gradient_checkpointing": False,
    }
    stage = SFTStage(name="sft", model=str(base), data=data, lora=AdapterConfig(r=4), train=train)
    run_sft(stage, adapter, seed=1)
    fold(base, adapter, folder / "merged")
    return {"base": base, "adapter": adapter, "merged": folder / "merged"}


def staged_copy(folder: Path, out: Path, **adapter: str) -> Path:
    """Checkpoint files and a card; an adapter names its base by id and revision."""
    out.mkdir()
    for file in folder.iterdir():
        if file.suffix in (".json", ".jinja", ".safetensors"):
            shutil.copy(file, out / file.name)
    (out / "README.md").write_text(CARD)
    if adapter:
        config = json.loads((out / "adapter_config.json").read_text())
        (out / "adapter_config.json").write_text(json.dumps(config | adapter))
    return out


def test_logits_and_renders_by_id_are_those_of_the_run_directories(
    hub: Hub, machine: Machine, run_dirs: dict[str, Path], tmp_path: Path
) -> None:
    """The base's repository goes on after the adapter was published; its revision is pinned."""
    base = staged_copy(run_dirs["base"], tmp_path / "base")
    revision = machine.upload(base, "ada/base", private=False).told["commit"]
    named = {"base_model_name_or_path": "ada/base", "revision": revision}
    adapter = staged_copy(run_dirs["adapter"], tmp_path / "adapter", **named)
    machine.upload(adapter, "ada/adapter")
    merged = staged_copy(run_dirs["merged"], tmp_path / "merged")
    machine.upload(merged, "ada/merged")
    shutil.copy(merged / "model.safetensors", base / "model.safetensors")
    assert machine.upload(base, "ada/base", private=False).told["commit"] != revision

    places = [str(merged), str(adapter), str(base), revision]
    shutil.copy(run_dirs["base"] / "model.safetensors", base / "model.safetensors")
    hub.seen.clear()
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, json.dumps(places)],
        cwd=tmp_path,
        env=machine.env(PYTHONNOUSERSITE="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["merged"]
    assert told["adapter"]
    assert told["adapter, base by its config"]
    assert told["merged is the adapter"] < 1e-4
    renders = told["renders"]
    assert renders[:2] == renders[2:]
    assert renders[0] != renders[1], "the modes"
    fetched = {
        request.path.split("/resolve/")[0] for request in hub.requests("GET .*/resolve/.*tensors")
    }
    assert fetched == {"/ada/merged", "/ada/base", "/ada/adapter"}


def test_a_private_model_is_for_its_owner_alone(
    hub: Hub, machine: Machine, staged: Path, tmp_path: Path
) -> None:
    machine.upload(staged)
    code = f'from huggingface_hub import hf_hub_download; hf_hub_download("{REPO}", "config.json")'
    for token, words in (("", "RepositoryNotFoundError: 401"), (machine.token, "")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(hub.url, tmp_path / "home", token),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == (1 if words else 0)
        assert words in done.stderr
