"""Documents beside conversations, through the commands that people use."""

import json
from pathlib import Path

import pytest
import yaml

from dualign.cli.main import main
from tests.document_files import write_pdf


@pytest.fixture
def recipe(tmp_path: Path, tiny: Path, rows: Path) -> Path:
    """A stage on a folder of documents and on conversations of both modes."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text("\n\n".join(f"Add {n} and {n}: {2 * n}." for n in range(60)))
    write_pdf(docs / "b.pdf", [["Add 2, 3, 4."], ["The sum is 9."]])
    recipe = tmp_path / "sft.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "name": "sft",
                "kind": "sft",
                "output_dir": str(tmp_path / "out"),
                "model": str(tiny),
                "data": {
                    "sources": [{"path": str(docs)}, {"path": str(rows / "train.jsonl")}],
                    "max_tokens": 128,
                    "cache": False,
                },
                "train": {
                    "max_steps": 2,
                    "per_device_train_batch_size": 4,
                    "logging_steps": 1,
                    "gradient_accumulation_steps": 4,
                    "learning_rate": 1e-3,
                    "gradient_checkpointing": False,
                },
            }
        )
    )
    return recipe


@pytest.mark.slow
def test_doctor_plan_and_inspect_know_documents(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(recipe)]) == 0
    assert "text: " in capsys.readouterr().out
    assert main(["plan", str(recipe)]) == 0
    assert "docs" in capsys.readouterr().out
    assert main(["inspect", str(recipe), "--rows", "2"]) == 0
    assert "docs" in capsys.readouterr().out


def test_a_stage_learns_documents_beside_a_replay_of_both_modes(
    recipe: Path, tmp_path: Path
) -> None:
    assert main(["sft", str(recipe)]) == 0
    out = tmp_path / "out/sft"
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    logged = set().union(*log)
    assert {"loss/text", "loss/source/docs", "loss/source/train"} <= logged
    record = json.loads((out / "run.json").read_text())["rows"]
    by = {entry["mode"]: entry for entry in record["by"]}
    assert by["text"]["supervised_tokens"] == by["text"]["tokens"] > 0
    assert record["in"] == record["kept"] == sum(entry["kept"] for entry in by.values())
