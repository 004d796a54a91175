"""The positions of the model that a stage starts from, before the stages that stretch it have run."""

import json
from pathlib import Path
from typing import Any

import pytest

from dualign.cost.plan import plan_stage
from dualign.cost.start_config import model_config
from dualign.engine import statuses
from dualign.errors import ConfigError
from dualign.recipe import load_recipe

MODEL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64,
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rope_theta": 1e4, "max_position_embeddings": 512,
}  # fmt: skip


def recipe_of(folder: Path, **keys: dict[str, Any]) -> Any:
    """A merge that stretches to 1,024 positions, and two stages that train on its result."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(MODEL))
    data = {"sources": [{"path": "stage:rows/rows.jsonl"}], "max_tokens": 4096}
    stages = [
        {"name": "rows", "kind": "script", "script": __file__},
        {
            "name": "long", "kind": "merge", "models": [{"model": "model"}],
            "context": {"length": 1024},
        },
        {"name": "sft", "kind": "sft", "model": "stage:long", "data": data},
        {"name": "more", "kind": "sft", "model": "stage:sft", "data": data, "context": {"length": 2048}},
    ]  # fmt: skip
    stages = [stage | keys.get(stage["name"], {}) for stage in stages]
    (folder / "recipe.yaml").write_text(json.dumps({"output_dir": "runs", "stages": stages}))
    return load_recipe(folder / "recipe.yaml", ())


def test_positions_follow_the_stages_that_have_not_run(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    known = statuses(recipe, remember=False)
    configs = [model_config(status.entry, known, tmp_path) for status in known[1:]]
    assert [config["max_position_embeddings"] for config in configs] == [1024, 1024, 2048]
    factors = [config["rope_parameters"]["factor"] for config in configs]
    assert factors == [2.0, 2.0, 4.0]  # from the first model's 512


def test_plan_says_which_rows_are_longer_than_the_positions(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    known = statuses(recipe, remember=False)
    notes = [" ".join(plan_stage(recipe, status, known).cost.notes) for status in known[2:]]
    assert "up to 4,096 tokens are longer than the model's 1,024 positions" in notes[0]
    assert "the model's 2,048 positions" in notes[1]


@pytest.mark.parametrize(
    ("stage", "keys", "words"),
    [
        ("long", {"context": {"length": 256}}, "stage long: context: 512 positions times"),
        ("more", {"context": {"length": 512}}, "stage more: context: 512 positions times"),
        ("more", {"context": {"length": 2048, "rope": "dynamic"}}, "stage more: dynamic positions"),
    ],
)
def test_plan_refuses_a_context_that_can_not_be(
    stage: str, keys: dict[str, Any], words: str, tmp_path: Path
) -> None:
    recipe = recipe_of(tmp_path, **{stage: keys})
    known = statuses(recipe, remember=False)
    status = next(item for item in known if item.entry.name == stage)
    with pytest.raises(ConfigError, match=words):
        plan_stage(recipe, status, known)
