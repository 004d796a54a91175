"""What the Hub gets of one run, all of it: an adapter, weights with GGUF files and a compressed copy beside them.

Someone else uses each by its card alone, in an environment with what the cards tell them to install.
"""

from pathlib import Path

import pytest
import yaml

from dualign import engine
from dualign.checkpoints.embedded import EMBEDDED
from dualign.export.comparison import ComparisonConfig
from dualign.export.compressed.export import export_compressed
from dualign.export.export import export
from dualign.export.llama_runtime import installed
from dualign.hashing import sha256
from dualign.recipe import load_recipe
from tests.pipeline.test_tiny_road import SCRIPT
from tests.publish.empty_environment import empty_environment
from tests.publish.following import TOKEN, card_of, follow, published
from tests.publish.hub.api import Person
from tests.publish.hub.server import running_hub
from tests.publish.quickstart_road import put_base

LORA = {"r": 8, "lora_alpha": 16}
TRAIN = {
    "learning_rate": 1e-3,
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "gradient_checkpointing": False,
}


def train(folder: Path) -> Path:
    """SFT on four sums, merged with its base, and evaluated; the output folder."""
    (folder / "make.py").write_text(SCRIPT)
    data = {"sources": [{"path": "stage:data/train.jsonl"}], "max_tokens": 256}
    sft = {"name": "sft", "kind": "sft", "model": EMBEDDED, "template": "dualign", "data": data}
    parts = [{"model": "stage:sft", "weight": 0.9}, {"model": EMBEDDED, "weight": 0.1}]
    of_sft = {"config_from": "stage:sft", "tokenizer_from": "stage:sft"}
    task = {"tasks": ["stage:data/sums.yaml"], "max_new_tokens": 30}
    recipe = {
        "name": "sums",
        "output_dir": str(folder / "runs"),
        "stages": [
            {"name": "data", "kind": "script", "script": "make.py"},
            {**sft, "lora": LORA, "train": TRAIN},
            {"name": "merged", "kind": "merge", "models": parts, **of_sft},
            {"name": "eval", "kind": "eval", "models": ["stage:merged"], **task},
        ],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    engine.run(load_recipe(folder / "recipe.yaml", []), say=lambda text: None)
    return folder / "runs"


def require_answers(printed: list[list[str]], snippets: int) -> None:
    """Each snippet of a card ran to its end, and printed something; what it says is the model's."""
    assert len(printed) == snippets
    for lines in printed:
        assert " ".join(lines).split(), printed


@pytest.mark.slow
@pytest.mark.skipif("xllamacpp" not in installed(), reason="needs xllamacpp, which runs llama.cpp")
def test_adapter_weights_gguf_and_a_compressed_copy_are_used_by_their_cards_alone(
    tmp_path: Path,
) -> None:
    pytest.importorskip("compressed_tensors")
    runs = train(tmp_path)
    asked = ComparisonConfig(rows=1, allow_worse=True)
    export(str(runs / "merged"), tmp_path / "gguf", types=["q8_0"])
    export_compressed(str(runs / "merged"), tmp_path / "fp8", type="fp8", comparison=asked)
    packages = ("torch", "transformers", "peft", "compressed-tensors", "xllamacpp")
    python = empty_environment(tmp_path / "empty", *packages, "huggingface_hub")
    copies = ("--with", str(tmp_path / "gguf"), str(tmp_path / "fp8"))
    options = ("--license", "apache-2.0", "--allow", "modes", "--allow", "both_modes")
    with running_hub(tmp_path / "hub", {TOKEN: Person(name="ada")}) as hub:
        put_base(hub, tmp_path)
        published(hub, tmp_path, runs / "sft", "ada/adapter", *options)
        printed = follow(card_of(hub, "ada/adapter"), python, hub, tmp_path / "of the adapter")
        require_answers(printed, 1)

        repo = published(hub, tmp_path, runs / "merged", "ada/model", *options, *copies)
        assert len(repo.commits) == 2, "one for all, after the Hub's own"
        for name in ("model.safetensors", "fp8/model.safetensors"):
            assert repo.head.files[name].sha256
        assert repo.head.files["merged-Q8_0.gguf"].sha256 == sha256(
            tmp_path / "gguf" / "merged-Q8_0.gguf"
        )
        printed = follow(card_of(hub, "ada/model"), python, hub, tmp_path / "of the weights")
        require_answers(printed, 3)  # transformers, xllamacpp, transformers with fp8/
