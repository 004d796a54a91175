"""Pairs from a checkpoint: right against wrong by a verifier, or a strong model against a weak one."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from dualign.errors import DataError, EvaluationError
from dualign.generation.config import Endpoint
from dualign.preference.pairs import run
from dualign.preference.pairs_config import PairsStage
from dualign.verifiers.table import verify
from tests.chat_model import fit, make_model, make_tokenizer, taught_row
from tests.data.text import families
from tests.generation.servers import Proxy, Reply, chat_reply

SUMS = {"1+2": 3, "4+5": 9, "2+2": 4, "7+1": 8}


def teach(folder: Path, *, offsets: tuple[int, ...], closed: bool = True) -> Path:
    """A model that has learnt to answer each sum with the right number plus one of `offsets`, equally often."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    end = "\n</think>\n\n" if closed else " "
    rows = [
        taught_row(tokenizer, f"What is {question}?", mode, f"{before}{right + offset}")
        for question, right in SUMS.items()
        for offset in offsets
        for mode, before in (("think", f"so {right + offset}{end}"), ("no_think", ""))
    ]
    fit(model, rows, 90)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def unsure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teach(tmp_path_factory.mktemp("unsure"), offsets=(0, 1))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("task")
    rows = [{"id": q, "prompt": f"What is {q}?", "answer": str(right)} for q, right in SUMS.items()]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sums.yaml").write_text("name: sums\nrows: sums.jsonl\nverifier: integer\n")
    return str(folder / "sums.yaml")


def pairs(work: Path) -> list[dict]:
    return [json.loads(line) for line in (work / "pairs.jsonl").read_text().splitlines()]


def test_a_model_that_is_asked_in_one_way_is_refused_before_it_is_loaded(
    unsure: Path, task: str, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(unsure)
    tokenizer.chat_template = families.PLAIN
    tokenizer.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "config.json").write_text((unsure / "config.json").read_text())
    stage = PairsStage(name="pairs", model=str(tmp_path / "plain"), tasks=(task,))
    with pytest.raises(
        EvaluationError, match=r"stage pairs, .*plain: both modes have the same prompt"
    ):
        run(stage, tmp_path / "out", seed=1)
    (tmp_path / "plain" / "chat_template.jinja").write_text("{{ nothing.at.all }}")
    with pytest.raises(EvaluationError, match="its chat template can't render"):
        run(stage, tmp_path / "out", seed=1)


def test_the_verifier_puts_right_against_wrong_in_both_modes(
    unsure: Path, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = PairsStage(
        name="pairs", model=str(unsure), tasks=(task,), samples=12, max_new_tokens=40
    )
    outcome = run(stage, tmp_path, seed=1)
    made = pairs(tmp_path)
    assert {pair["mode"] for pair in made} == {"think", "no_think"}
    assert len(made) == outcome.rows["kept"] >= 6
    lengths = outcome.metrics["lengths"]
    assert lengths["unit"] == f"tokens of {unsure.name}"
    for mode, figures in lengths["modes"].items():  # each byte is a token of this tokenizer
        of_mode = [pair for pair in made if pair["mode"] == mode]
        for side in ("chosen", "rejected"):
            characters = [len("".join(list(pair[side][0].values())[1:])) for pair in of_mode]
            assert figures[side] == round(sum(characters) / len(of_mode), 1)
    assert "Lengths in tokens of" in capsys.readouterr().out
    reasons = outcome.metrics["reasons"]
    assert set(reasons) <= {"another number", "no number"} and sum(reasons.values()) >= len(made)
    for pair in made:
        right = SUMS[pair["id"]]
        chosen, rejected = pair["chosen"][0], pair["rejected"][0]
        assert int(chosen["content"]) == right
        assert not verify("integer", rejected["content"], right)
        assert ("reasoning_content" in chosen) == (pair["mode"] == "think")
        assert pair["prompt"] == [{"role": "user", "content": f"What is {pair['id']}?"}]


def test_prompts_in_are_kept_or_dropped_with_a_reason(
    unsure: Path, task: str, tmp_path: Path
) -> None:
    stage = PairsStage(name="pairs", model=str(unsure), tasks=(task,), samples=2, max_new_tokens=40)
    rows = run(stage, tmp_path, seed=3).rows
    assert rows["in"] == 8 == rows["kept"] + sum(rows["dropped"].values())
    assert set(rows["dropped"]) <= {"all_right", "all_wrong", "malformed"}
    for entry in rows["by"]:
        assert entry["in"] == 4 == entry["kept"] + sum(entry["dropped"].values())


def test_a_cut_off_run_goes_on_and_ends_the_same(unsure: Path, task: str, tmp_path: Path) -> None:
    stage = PairsStage(name="pairs", model=str(unsure), tasks=(task,), samples=4, max_new_tokens=40)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    run(stage, whole, seed=1)
    lines = (whole / "generations.jsonl").read_text().splitlines(keepends=True)
    (cut / "generations.jsonl").write_text("".join(lines[:13]) + lines[13][:20])
    run(stage, cut, seed=1)
    assert pairs(cut) == pairs(whole)
    again = (cut / "generations.jsonl").read_text().splitlines()
    assert again[:13] == [line.strip() for line in lines[:13]]


def test_a_strong_model_against_a_weak_one(task: str, tmp_path: Path) -> None:
    strong = teach(tmp_path / "strong", offsets=(0,))
    weak = teach(tmp_path / "weak", offsets=(1,))
    stage = PairsStage(
        name="pairs",
        model=str(strong),
        rejected_model=str(weak),
        tasks=(task,),
        max_new_tokens=40,
        temperature=0.2,
    )
    work = tmp_path / "work"
    work.mkdir()
    assert run(stage, work, seed=1).rows["kept"] == 8
    for pair in pairs(work):
        assert int(pair["rejected"][0]["content"]) == int(pair["chosen"][0]["content"]) + 1


def test_malformed_samples_make_no_pair(task: str, tmp_path: Path) -> None:
    """A think block that never closes can't be chosen or rejected."""
    model = teach(tmp_path / "open", offsets=(0, 1), closed=False)
    stage = PairsStage(
        name="pairs", model=str(model), tasks=(task,), modes=("think",), max_new_tokens=30
    )
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(DataError, match=r"no pair came of 4 prompts.*malformed"):
        run(stage, work, seed=1)


def test_a_sample_with_a_control_token_in_its_text_makes_no_pair(
    unsure: Path, task: str, tmp_path: Path
) -> None:
    """The preference stage after it would stop there."""
    stage = PairsStage(
        name="pairs", model=str(unsure), tasks=(task,), modes=("no_think",), max_new_tokens=4
    )
    with suppress(DataError):
        run(stage, tmp_path, seed=1)
    file = tmp_path / "generations.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    odd = [line | {"generated": f"{line['generated']}<|im_start|>user"} for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in odd))
    with pytest.raises(DataError, match=r"no pair came of 4 prompts: {'malformed': 4}"):
        run(stage, tmp_path, seed=1)


def by_seed(body: dict) -> Reply:
    """A server that is right for every other seed; it says nothing sensible about 7+1."""
    question = body["messages"][-1]["content"].removeprefix("What is ").removesuffix("?")
    if question == "7+1":
        return 400, {}, b'{"error": {"message": "not that"}}'
    number = SUMS[question] + body["seed"] % 2
    thinks = body["chat_template_kwargs"]["enable_thinking"]
    return 200, {}, chat_reply(f"{number}", **({"reasoning": f"so {number}"} if thinks else {}))


def test_an_endpoint_gives_the_samples_and_what_it_left_out_is_counted(
    task: str, tmp_path: Path
) -> None:
    with Proxy(by_seed).running() as server:
        endpoint = Endpoint(url=server.address, name="tiny", max_failed=0.3)
        stage = PairsStage(name="pairs", model=endpoint, tasks=(task,), samples=16)
        outcome = run(stage, tmp_path, seed=1)
        assert len(server.asked) == 128
        assert run(stage, tmp_path, seed=1).rows == outcome.rows
        assert len(server.asked) == 128 + 32  # what failed is asked again
    assert outcome.rows["in"] == 8 and outcome.rows["dropped"] == {"failed": 2}
    assert {(pair["id"], pair["mode"]) for pair in pairs(tmp_path)} == {
        (question, mode) for question in ("1+2", "4+5", "2+2") for mode in ("think", "no_think")
    }
    for pair in pairs(tmp_path):
        assert int(pair["chosen"][0]["content"]) == SUMS[pair["id"]]
        assert int(pair["rejected"][0]["content"]) == SUMS[pair["id"]] + 1
        assert ("reasoning_content" in pair["chosen"][0]) == (pair["mode"] == "think")
    assert outcome.metrics["endpoints"]["tiny"]["failed"] == {"400": 32}


def test_one_model_asked_in_two_ways_is_counted_twice(task: str, tmp_path: Path) -> None:
    def answer(body: dict) -> Reply:
        return by_seed(body | {"seed": body["top_k"] - 1})

    with Proxy(answer).running() as server:
        careful, hasty = (
            Endpoint(url=server.address, name="tiny", body={"top_k": k}, max_failed=1)
            for k in (1, 2)
        )
        stage = PairsStage(name="pairs", model=careful, rejected_model=hasty, tasks=(task,))
        metrics = run(stage, tmp_path, seed=1).metrics
    counts = {name: record["answers"] for name, record in metrics["endpoints"].items()}
    assert counts == {"tiny": 6, "tiny (rejected)": 6}
    assert metrics["pairs"] == 6


def test_a_strong_endpoint_stands_against_a_weak_checkpoint(
    unsure: Path, task: str, tmp_path: Path
) -> None:
    def in_words(body: dict) -> Reply:
        """A form of answer that the checkpoint never learned, so no two are identical."""
        status, headers, reply = by_seed(body)
        return status, headers, chat_reply("That is a lot.") if status == 200 else reply

    with Proxy(in_words).running() as server:
        strong = Endpoint(url=server.address, name="strong", max_failed=1)
        stage = PairsStage(
            name="pairs",
            model=strong,
            rejected_model=str(unsure),
            tasks=(task,),
            modes=("no_think",),
            max_new_tokens=40,
        )
        outcome = run(stage, tmp_path, seed=1)
    assert outcome.rows["in"] == 4 and outcome.rows["dropped"]["failed"] == 1
    assert {pair["chosen"][0]["content"] for pair in pairs(tmp_path)} == {"That is a lot."}
