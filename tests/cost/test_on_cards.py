"""`dualign plan --on`: a recipe on cards that aren't here."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dualign.cli.main import main
from dualign.cost.answering import answer_time
from dualign.cost.cards import cards, cluster
from dualign.cost.on_cards import StageOnCards, stage_on_cards
from dualign.cost.show_on import show_plan_on
from dualign.cost.ways import CHEAPER, FASTER, Way, cheaper, ways, with_engine
from dualign.engine import statuses
from dualign.errors import ConfigError
from dualign.generation.estimate import Demand
from dualign.recipe import Recipe, load_recipe
from tests.cost.test_memory import FULL, LORA, SMOLLM3, SMOLLM3_CONFIG

ACCELERATE = Path(__file__).parents[2] / "recipes" / "accelerate"


def recipe_of(folder: Path, *stages: dict[str, Any]) -> Recipe:
    """A recipe of SmolLM3-3B, whose weights and rows are elsewhere."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(SMOLLM3_CONFIG))
    model = {"model": str(folder / "model")}
    whole = [stage if "models" in stage else {**model, **stage} for stage in stages]
    document = {"output_dir": str(folder / "out"), "stages": whole}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(document))
    return load_recipe(path, [])


def sft(**keys: Any) -> dict[str, Any]:
    """A stage that trains every weight for 10 steps of 8 rows."""
    train = {"max_steps": 10, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    data = {"sources": [{"path": "ada/rows"}], "max_tokens": 4096}
    stage: dict[str, Any] = {"name": "sft", "kind": "sft", "data": data, "train": train}
    stage["attn_implementation"] = "flash_attention_2"  # known without a model's code
    return {**stage, **keys, "train": {**train, **keys.get("train", {})}}


def planned(recipe: Recipe, on: str) -> list[StageOnCards]:
    states = statuses(recipe, remember=False)
    return [stage_on_cards(recipe, status, states, cluster(on)) for status in states]


def test_one_card_is_used_without_a_launcher_and_the_way_to_all_is_shown(tmp_path: Path) -> None:
    (stage,) = planned(recipe_of(tmp_path, sft()), "8xA100-40")
    first, *others = stage.ways
    assert first.cards == 1 and not first.fits and first.way.changes == ()
    assert "without launch one process works on one of the 8 cards" in "\n".join(stage.notes)
    assert others[0].cards == 8 and others[0].fits
    assert others[0].way.changes[0].endswith("with 8 processes")
    assert not others[0].way.other_result
    assert others[0].tokens_per_second > 4 * first.tokens_per_second
    # 10 steps of 8 rows of 4096 tokens
    assert first.seconds == pytest.approx(10 * 8 * 4096 / first.tokens_per_second)
    assert first.price(2.0) == pytest.approx(first.step.seconds * 10 / 3600 * 2.0)


def test_a_launcher_for_another_number_of_cards_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, sft(launch=str(ACCELERATE / "zero3.yaml")))
    message = (
        r"stage sft: launch: zero3.yaml starts 8 processes, and --on has 4 cards: set launch: "
        r"\{config_file: zero3.yaml, num_processes: 4\} and gradient_accumulation_steps: 4, "
    )
    with pytest.raises(ConfigError, match=message):
        planned(recipe, "4xH100")


def test_processes_that_share_rows_are_one_row_of_a_step(tmp_path: Path) -> None:
    """8 processes in groups of 4 and 16 accumulated: 32 rows, of which a process holds quarters."""
    keys = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16}
    long = {"sources": [{"path": "ada/rows"}], "max_tokens": 65536}
    whole = sft(launch=str(ACCELERATE / "zero3.yaml"), train=keys, data=long)
    shared = {**whole, "name": "shared", "launch": str(ACCELERATE / "ulysses.yaml")}
    alone, parts = planned(recipe_of(tmp_path, whole, shared), "8xH100")
    assert alone.tokens_per_step == 8 * 16 * 65536
    assert parts.tokens_per_step == 2 * 16 * 65536
    assert parts.ways[0].memory.activations < 0.3 * alone.ways[0].memory.activations
    assert parts.ways[0].tokens_per_second == pytest.approx(
        alone.ways[0].tokens_per_second, rel=0.02
    )


def test_rows_are_shared_by_what_divides_heads_and_node() -> None:
    alone = with_engine(replace(FULL, world_size=8, attention="dualign"), "zero3")
    start = Way(training=alone, heads=4)
    shared = {
        (way.parts, way.training.gradient_accumulation)
        for way in ways(start, cluster("8xH100"), CHEAPER)
    }
    assert shared == {(1, 1), (2, 2), (4, 4)}
    assert {way.parts for way in ways(replace(start, heads=0), cluster("8xH100"), CHEAPER)} == {1}


def test_a_launcher_that_is_missing_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, sft(launch=str(ACCELERATE / "zero3.yaml")))
    config = replace(recipe.stages[0].config, launch="elsewhere.yaml")
    entry = replace(recipe.stages[0], config=config)
    status = replace(statuses(recipe, remember=False)[0], entry=entry)
    with pytest.raises(ConfigError, match=r"elsewhere\.yaml"):
        stage_on_cards(recipe, status, [status], cluster("8xH100"))


def test_what_fits_has_a_faster_way_and_cheaper_ones(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, sft(launch=str(ACCELERATE / "zero3.yaml")))
    (stage,) = planned(recipe, "8xH200")
    sizes = [cost.memory.total for cost in stage.ways]
    assert len(sizes) == 3 and sizes[0] > sizes[1] > sizes[2]
    assert all(cost.fits for cost in stage.ways)
    assert any(note.startswith("faster, and fits: ") for note in stage.notes)


def test_what_fits_nowhere_is_told_the_smallest_change(tmp_path: Path) -> None:
    long = sft(data={"sources": [{"path": "ada/rows"}], "max_tokens": 65536})
    recipe = recipe_of(tmp_path, long)
    (stage,) = planned(recipe, "T4")
    said = "\n".join(stage.notes)
    assert len(stage.ways) == 1 and not stage.ways[0].fits
    assert "it doesn't fit: " in said and "GB of 16 GB a card" in said
    assert "the smallest in the table is the " in said
    assert "or data.max_tokens: " in said and "(another result: longer rows are dropped" in said
    (stage,) = planned(recipe, "H100")
    first, *others = stage.ways
    assert not first.fits and all(cost.fits and cost.way.other_result for cost in others)
    assert "every way that fits gives another model" in "\n".join(stage.notes)
    assert "cards under ZeRO-3 with" in "\n".join(stage.notes)


def test_rows_that_cant_be_read_here_are_taken_as_unknown(tmp_path: Path) -> None:
    """The model's folder has no tokenizer."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": []}')
    data = {"sources": [{"path": str(rows)}], "max_tokens": 4096}
    (stage,) = planned(recipe_of(tmp_path, sft(data=data)), "H100")
    assert stage.ways and stage.notes[0].startswith("its rows can't be read here: ")


def test_a_type_that_the_card_emulates_is_said(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, sft(train={"bf16": True}), sft(name="auto"))
    asked, auto = planned(recipe, "T4")
    assert "has no bfloat16: torch emulates it" in "\n".join(asked.notes)
    assert "float16 arithmetic on this card" in "\n".join(auto.notes)
    assert auto.ways[0].tokens_per_second > 4 * asked.ways[0].tokens_per_second


def test_stages_that_ask_models_get_a_time_with_its_assumptions(tmp_path: Path) -> None:
    (tmp_path / "sums.yaml").write_text(
        "name: sums\nrows: sums.jsonl\nprompt: '{prompt}'\nverifier: integer\n"
    )
    rows = [{"prompt": f"{n} + 1?", "answer": str(n + 1)} for n in range(8)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked: dict[str, Any] = {
        "kind": "eval",
        "models": [str(tmp_path / "model"), "http://127.0.0.1:1/v1"],
    }
    asked |= {"name": "eval", "tasks": [str(tmp_path / "sums.yaml")], "max_new_tokens": 100}
    merged: dict[str, Any] = {"name": "soup", "kind": "merge", "method": "linear"}
    merged["models"] = [{"model": name, "weight": 1} for name in ("ada/a", "ada/b")]
    evaluated, soup = planned(recipe_of(tmp_path, asked, merged), "8xH100")
    assert "16 answers of 1,600 tokens at most, 16 rows at once" in evaluated.details
    assert (
        "70% of the memory's bandwidth" in evaluated.details and "not measured" in evaluated.details
    )
    assert "an endpoint answers, not these cards" in evaluated.details
    assert "one card works, the other 7 don't" in evaluated.details
    assert "no card shortens it" in soup.details


def test_generation_takes_as_long_as_reading_the_weights() -> None:
    """3,075,098,624 x 2 bytes at 70 % of 3,350 GB/s: 2.6 ms a step, besides caches and starts."""
    demand = Demand(requests=64, prompt_tokens=64 * 100, answer_tokens=64 * 900)
    card = cluster("H100").card
    slow = answer_time(SMOLLM3, demand, card, batch_tokens=32768, backend="transformers")
    fast = answer_time(SMOLLM3, demand, card, batch_tokens=32768, backend="vllm")
    assert (slow.rows, fast.rows) == (32, 64)
    cached = 2 * 36 * 512 * 2
    step = (2 * 3_075_098_624 + 64 * cached * (100 + 450)) / (0.7 * 3350e9)
    assert fast.writing == pytest.approx(900 * step)
    assert slow.writing > 2 * 900 * 36 * 0.0007


def test_moves_keep_the_rows_of_a_step() -> None:
    start = Way(training=replace(FULL, micro_batch=4, gradient_accumulation=4))
    for way in ways(start, cluster("8xH100"), CHEAPER):
        step = way.training
        rows = step.micro_batch * step.gradient_accumulation * step.world_size
        assert rows == 16 * way.parts
        assert bool(way.changes) == (way is not start)


def test_rows_that_cards_cant_share_stay_on_one() -> None:
    start = Way(training=replace(FULL, micro_batch=3))
    assert {way.training.world_size for way in ways(start, cluster("8xH100"), CHEAPER)} == {1}


def test_pairs_are_halved_with_both_answers() -> None:
    pairs = replace(
        LORA, pairs=True, micro_batch=8, reference="adapter", tokens_per_micro_batch=999
    )
    start = Way(training=pairs, answers=2)
    sizes = {
        (way.training.micro_batch, way.training.tokens_per_micro_batch)
        for way in ways(start, cluster("H100"), CHEAPER)
    }
    assert sizes == {(8, 999), (4, 500), (2, 250)}


def test_faster_ways_drop_recomputation_and_shards() -> None:
    start = Way(training=with_engine(replace(FULL, world_size=8), "zero3"))
    found = {way.changes for way in ways(start, cluster("8xH100"), FASTER)}
    assert ("train.gradient_checkpointing: false", "launch: zero2.yaml") in found


def test_of_ways_the_one_that_keeps_the_result_comes_first() -> None:
    def way(change: str, result: str = "") -> Way:
        return Way(training=FULL, changes=(change,), other_result=result)

    kept, fast, other, least = way("a"), way("b"), way("c", "another"), way("d")
    sized = [(other, 10, 1.0), (kept, 50, 3.0), (fast, 60, 2.0), (least, 20, 4.0)]
    assert cheaper(100, sized) == [fast, kept]
    assert cheaper(55, sized) == [kept, least]
    assert cheaper(15, sized) == [other]


def test_the_command_prints_ways_memory_and_what_it_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path, sft(launch=str(ACCELERATE / "fsdp2.yaml")))
    show_plan_on(recipe, "8xH100", price=2.5)
    shown = capsys.readouterr().out
    for text in ("as it is", "fits", "tokens/s", "price", "nothing was measured", "NVLink 4"):
        assert text in shown
    assert "2 gathered modules" in shown  # memory of each card
    assert main(["plan", str(recipe.file), "--on", "8xH1000"]) == 2
    assert "did you mean h100?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--on", "H100", "--measure"], "leave one out"),
        (["--on", ""], "--on: expected CARDSxCARD"),
        (["--price", "2"], "name the cards with --on"),
        (["--on", "H100", "--price", "-1"], "--price: expected 0 or more, found -1"),
        (["--on", "H100", "--price", "nan"], "--price: expected 0 or more, found nan"),
    ],
)
def test_options_that_clash_are_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path, sft())
    assert main(["plan", str(recipe.file), *options]) == 2
    assert message in capsys.readouterr().err


def test_the_help_names_every_card(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    listed = capsys.readouterr().out.split("Cards: ")[1].split(".\n")[0].split()
    assert listed == [card.names[0] for card in cards()]
