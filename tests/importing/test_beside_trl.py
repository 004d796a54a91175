"""Files of TRL, trained by its own scripts and as the imported recipe: the same rates and losses."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from trl.scripts import sft

from dualign.cli.main import main

SETTINGS = {
    **{"dtype": "float32", "bf16": False, "use_cpu": True, "seed": 7, "logging_steps": 1},
    **{"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0.4},
    **{"weight_decay": 0.1, "num_train_epochs": 3, "max_length": 256, "report_to": "none"},
    "assistant_only_loss": False,
}
LORA = {
    **{"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
    "lora_target_modules": ["q_proj", "v_proj"],
}
TALKS = (
    ("What is two and three?", "Five."),
    ("Name three colors.", "Red, green and blue."),
    ("Say good morning in German.", "Guten Morgen"),
    ("How many legs has a spider?", "A spider has eight legs."),
)


def rows() -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for question, answer in TALKS
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"per_device_train_batch_size": 4},
        {**LORA, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"packing": True, "max_length": 64, "per_device_train_batch_size": 4},
    ],
    ids=["full", "lora", "packed"],
)
def test_a_file_of_trl_trains_as_the_recipe_that_it_becomes(
    keys: dict[str, Any], shrunk: Path, tmp_path: Path
) -> None:
    data, file, out = tmp_path / "rows.jsonl", tmp_path / "sft.yaml", tmp_path / "mine.yaml"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows()))
    sets = [{"path": "json", "data_files": str(data), "split": "train"}]
    theirs = {"model_name_or_path": str(shrunk), "datasets": sets, **SETTINGS, **keys}
    file.write_text(yaml.safe_dump(theirs))

    arguments = ["--config", str(file), "--output_dir", str(tmp_path / "theirs")]
    sft.main(*sft.make_parser().parse_args_and_config(args=arguments))
    (state,) = (tmp_path / "theirs").glob("checkpoint-*/trainer_state.json")
    trained = json.loads(state.read_text())["log_history"]

    assert main(["import", str(file), "--from", "trl", "--script", "sft", "--out", str(out)]) == 0
    assert main(["sft", str(out), f"output_dir={tmp_path / 'ours'}"]) == 0
    log = (tmp_path / "ours" / "sft" / "log.jsonl").read_text().splitlines()

    steps = [entry for entry in map(json.loads, log) if "loss" in entry]
    assert len(steps) == len([entry for entry in trained if "loss" in entry]) == 3
    for here, there in zip(steps, trained, strict=False):
        assert here["learning_rate"] == pytest.approx(there["learning_rate"])
        assert here["loss"] == pytest.approx(there["loss"], rel=1e-4)
