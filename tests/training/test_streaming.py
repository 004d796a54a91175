"""Training on streams: to the same bits after a pause and after kill -9, with every row counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from dualign import engine
from dualign.recipe import load_recipe
from dualign.rundir import read_run
from tests import processes
from tests.training import test_resume
from tests.training.test_resume import kill_at_checkpoint, start, weights


def write_recipe(folder: Path, tiny: Path, rows: Path, **keys: Any) -> Path:
    """SFT with dropout on two streams in blocks of 20 rows, which are smaller than what is trained on."""
    folder.mkdir(exist_ok=True)
    lines = (rows / "train.jsonl").read_text().splitlines()
    for name, part in (("think", 1), ("no_think", 0)):
        (folder / f"{name}.jsonl").write_text("\n".join(lines[part::2]))
    stage = {
        "name": "sft",
        "kind": "sft",
        "model": str(tiny),
        "lora": {"r": 4, "lora_dropout": 0.1},
        "data": {
            "sources": [
                {"path": str(folder / "think.jsonl"), "share": 0.6},
                {"path": str(folder / "no_think.jsonl")},
            ],
            "max_tokens": 128,
            "validation_rows": 2,
            "streaming": {"shuffle_buffer": 20},
        },
        "train": {**test_resume.TRAIN, "max_steps": 8, "eval_strategy": "steps", "eval_steps": 4},
        **keys,
    }
    path = folder / "recipe.yaml"
    recipe = {"output_dir": str(folder / "out"), "seed": 3, "stages": [stage]}
    path.write_text(json.dumps(recipe))
    return path


def log_of(recipe: Path) -> list[dict[str, Any]]:
    """The log without what the clock says, and without tokens: TRL counts those since it resumed."""
    lines = (recipe.parent / "out" / "sft" / "log.jsonl").read_text().splitlines()
    timed = ("runtime", "per_second", "num_tokens")
    return [
        {name: value for name, value in json.loads(line).items() if not name.endswith(timed)}
        for line in lines
    ]


def test_a_paused_run_on_streams_goes_on_to_the_same_bits(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    calm = write_recipe(tmp_path / "calm", tiny, rows)
    engine.run(load_recipe(calm, ()))
    paused = write_recipe(tmp_path / "paused", tiny, rows, pause_at_step=5)
    engine.run(load_recipe(paused, ()))
    engine.run(load_recipe(write_recipe(tmp_path / "paused", tiny, rows), ()))
    assert weights(calm, "sft") == weights(paused, "sft")
    assert [line.get("loss") for line in log_of(calm)] == [
        line.get("loss") for line in log_of(paused)
    ]
    run, other = (read_run(recipe.parent / "out" / "sft") for recipe in (calm, paused))
    assert run["rows"] == other["rows"]
    counted = run["rows"]
    assert counted["in"] == counted["kept"] + sum(counted["dropped"].values())
    assert counted["validation"] == 4
    shares = {entry["source"]: entry["share"] for entry in counted["by"]}
    assert shares["think"] == pytest.approx(0.6, abs=0.05)


@pytest.mark.slow
def test_killed_sft_on_streams_ends_bit_identical(tiny: Path, rows: Path, tmp_path: Path) -> None:
    undisturbed, disturbed = (
        write_recipe(tmp_path / name, tiny, rows) for name in ("calm", "rough")
    )
    start(undisturbed).finish()
    for step in (2, 4, 8):
        kill_at_checkpoint(disturbed, "sft", step)
    start(disturbed).finish()
    assert weights(undisturbed, "sft") == weights(disturbed, "sft")
    assert log_of(undisturbed)[:-1] == log_of(disturbed)[:-1]
    runs = [read_run(recipe.parent / "out" / "sft") for recipe in (undisturbed, disturbed)]
    assert runs[0]["rows"] == runs[1]["rows"]
    assert runs[1]["resumed"] == 3


@pytest.mark.slow
def test_two_processes_train_on_rows_of_their_own(tiny: Path, rows: Path, tmp_path: Path) -> None:
    launcher = processes.on_cpu("fsdp2", tmp_path)

    def run(recipe: Path, *overrides: str) -> None:
        log = recipe.with_suffix(".log")
        processes.Fork("run", str(recipe), *overrides, log=log, launcher=launcher).finish()

    calm, paused = (
        write_recipe(tmp_path / name, tiny, rows, verify_reload=False)
        for name in ("calm", "paused")
    )
    run(calm)
    run(paused, "sft.pause_at_step=5")
    alone = processes.Fork("run", str(paused), log=tmp_path / "alone.log")
    with pytest.raises(AssertionError, match=r"data\.streaming deals rows out by the number of"):
        alone.finish()
    run(paused)
    assert weights(calm, "sft") == weights(paused, "sft")
    counted, other = (read_run(recipe.parent / "out" / "sft")["rows"] for recipe in (calm, paused))
    assert counted == other
    assert counted["in"] == counted["kept"] + sum(counted["dropped"].values()) == 120
    assert counted["validation"] == 4, "both processes hold the same rows out"
    assert counted["tokens"] > 2 * 3000
