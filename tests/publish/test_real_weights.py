"""The embedded 135M model, trained for two steps and made ready: its license, its base, both modes asked."""

import json
from pathlib import Path

import pytest

from dualign import engine
from dualign.checkpoints.embedded import EMBEDDED
from dualign.publish.publish import prepare
from dualign.publish.release import PublishRequest
from dualign.recipe import load_recipe

RECIPE = """
name: real
output_dir: out
stages:
  - name: sft
    kind: sft
    model: {model}
    save: merged
    lora: {{r: 4}}
    data: {{sources: [{{path: rows.jsonl}}], max_tokens: 128}}
    train: {{max_steps: 2, per_device_train_batch_size: 1, gradient_checkpointing: false}}
"""


@pytest.mark.slow
def test_the_embedded_model_is_made_ready_with_its_adapter(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"Add {n} and 2."}, {"role": "assistant", "content": str(n + 2)}], "mode": "no_think"}
        for n in range(8)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=EMBEDDED))
    recipe = load_recipe(tmp_path / "recipe.yaml", [f"output_dir={tmp_path / 'out'}"])
    engine.run(recipe, say=lambda text: None)
    folder = tmp_path / "staged"
    folder.mkdir()
    request = PublishRequest(
        run_dir=tmp_path / "out" / "sft",
        repo_id="someone/real",
        license_of={"rows": "cc-by-4.0"},
        allow=frozenset({"base_weights", "modes"}),
    )
    prepared = prepare(request, folder)
    assert not prepared.failed, [check for check in prepared.checks if check.state == "failed"]
    states = {check.name: check.state for check in prepared.checks}
    assert states["base_weights"] == "allowed", "the package's weights were through 4 bits"
    assert states["logits"] == states["logits (adapter)"] == "ok"
    card = (folder / "README.md").read_text()
    assert (
        "license: cc-by-4.0" in card and "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card
    )
    assert "- en\n" in card and "had been stored in 4 bits" in card
