"""Questions of a pairs stage that are rows of a source, and their own answers as the chosen ones."""

import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dualign.data.config import SourceConfig
from dualign.errors import DataError, EvaluationError
from dualign.generation.config import Endpoint
from dualign.preference.pair_questions import issues, read_questions
from dualign.preference.pairs import run
from dualign.preference.pairs_config import AskedRows, PairsStage
from tests.generation.servers import Proxy, Reply, chat_reply

SUMS = {"1+2": 3, "4+5": 9, "2+2": 4, "7+1": 8}


def rows(*, thinks: bool = False) -> list[dict[str, Any]]:
    """Half of the rows of a mixed set are of think mode."""
    made = []
    for n, (sum_, right) in enumerate(SUMS.items()):
        answer = {"role": "assistant", "content": f"It is {right}."}
        if thinks and n % 2:
            answer["reasoning_content"] = f"I count to {right}."
        question = {"role": "user", "content": f"What is {sum_}?"}
        made.append({"id": f"q{n}", "messages": [question, answer], "number": right})
    return made


def asked_rows(folder: Path, lines: list[dict[str, Any]], **keys: Any) -> AskedRows:
    file = folder / "sums.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return AskedRows(sources=(SourceConfig(path=str(file)),), **keys)


@dataclass
class Answers:
    """A server that is right every other time that it is asked something."""

    asked: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, body: dict[str, Any]) -> Reply:
        question = re.search(r"\d\+\d", body["messages"][-1]["content"])[0]
        thinks = body["chat_template_kwargs"]["enable_thinking"]
        with self.lock:
            number = SUMS[question] + self.asked[f"{question} {thinks}"] % 2
            self.asked[f"{question} {thinks}"] += 1
        return 200, {}, chat_reply(f"{number}", **({"reasoning": f"so {number}"} if thinks else {}))


def made(stage_data: AskedRows, work: Path, **keys: Any) -> tuple[Any, list[dict[str, Any]]]:
    with Proxy(Answers()).running() as server:
        model = Endpoint(url=server.address, name="tiny")
        stage = PairsStage(name="pairs", model=model, data=stage_data, **{"samples": 2, **keys})
        assert not stage.problems()
        outcome = run(stage, work, seed=1)
    return outcome, [json.loads(line) for line in (work / "pairs.jsonl").read_text().splitlines()]


def test_rows_are_asked_in_both_modes_and_a_verifier_sorts_the_samples(tmp_path: Path) -> None:
    data = asked_rows(tmp_path, rows(), verifier="integer", expected="{number}")
    outcome, pairs = made(data, tmp_path)
    assert {(pair["id"], pair["mode"]) for pair in pairs} == {
        (f"q{n}", mode) for n in range(4) for mode in ("think", "no_think")
    }
    for pair in pairs:
        (question,) = pair["prompt"]
        right = SUMS[question["content"][8:11]]
        assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == (
            f"{right}",
            f"{right + 1}",
        )
        assert pair["source"] == "sums" and "task" not in pair
    assert outcome.rows["in"] == outcome.rows["kept"] == 8
    assert outcome.data[0]["rows"] == 4


def test_the_answer_of_a_row_is_chosen_in_the_mode_of_the_row(tmp_path: Path) -> None:
    data = asked_rows(tmp_path, rows(thinks=True), verifier="integer", expected="{number}")
    outcome, pairs = made(data, tmp_path, chosen="row")
    assert [(pair["id"], pair["mode"]) for pair in pairs] == [
        ("q0", "no_think"),
        ("q1", "think"),
        ("q2", "no_think"),
        ("q3", "think"),
    ]
    for pair in pairs:
        right = SUMS[pair["prompt"][0]["content"][8:11]]
        chosen, rejected = pair["chosen"][0], pair["rejected"][0]
        assert chosen["content"] == f"It is {right}."
        assert rejected["content"] == f"{right + 1}", "what the verifier finds right isn't rejected"
        traces = (chosen.get("reasoning_content"), rejected.get("reasoning_content"))
        thought = (f"I count to {right}.", f"so {right + 1}")
        assert traces == (thought if pair["mode"] == "think" else (None, None))
    assert outcome.rows["kept"] == 4


def test_rows_that_are_not_asked_are_counted(tmp_path: Path) -> None:
    lines = rows(thinks=True)
    lines[0]["messages"].append({"role": "user", "content": "Thanks."})
    lines[2]["messages"][-1]["content"] = "<think>It is 4."
    data = asked_rows(tmp_path, lines, verifier="integer", expected="{number}", conflicts="drop")
    outcome, pairs = made(data, tmp_path, chosen="row", modes=("think",))
    assert [pair["id"] for pair in pairs] == ["q1", "q3"]
    assert outcome.rows["in"] == 4 == outcome.rows["kept"] + sum(outcome.rows["dropped"].values())
    assert outcome.rows["dropped"]["unclosed_think"] == 1


def test_without_a_verifier_the_answer_of_a_row_stands_against_a_sample(tmp_path: Path) -> None:
    outcome, pairs = made(asked_rows(tmp_path, rows()), tmp_path, chosen="row", modes=("no_think",))
    assert len(pairs) == 4 and outcome.metrics["samples"] == 4


def test_earlier_answers_of_a_no_think_pair_have_no_trace(tmp_path: Path) -> None:
    line = rows(thinks=True)[1]
    line["messages"] += [{"role": "user", "content": "What is 2+2? /think"}]
    line["messages"] += [{"role": "assistant", "content": "4", "reasoning_content": "two twice"}]
    stage = PairsStage(
        name="p", model="m", data=asked_rows(tmp_path, [line], verifier="integer"), samples=2
    )
    think, no_think = read_questions(stage, seed=0).items
    assert think.messages[1]["reasoning_content"] == "I count to 9."
    assert "reasoning_content" not in no_think.messages[1]
    assert think.messages[-1]["content"] == "What is 2+2? /think"
    assert no_think.messages[-1]["content"] == "What is 2+2?"


def test_what_cannot_be_checked_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    data = asked_rows(tmp_path, [{**rows()[0], "number": "many"}])
    stage = PairsStage(name="p", model="m", data=data, chosen="row")
    assert not issues(stage) and stage.in_words().startswith(
        "prompts: 1 at most\nanswers of m: 1 of"
    )
    data = asked_rows(
        tmp_path, [{**rows()[0], "number": "many"}], verifier="integer", expected="{number}"
    )
    stage = PairsStage(name="p", model="m", data=data)
    ((key, message),) = issues(stage)
    assert key == "data" and "sums, row 0" in message
    with pytest.raises(DataError, match="sums, row 0"):
        read_questions(stage, seed=0)


def test_problems_without_their_length_are_never_asked() -> None:
    stage = PairsStage(name="p", model="m", tasks=("long:needle@4k*1",))
    ((key, message),) = issues(stage)
    assert key == "tasks"
    assert message.startswith("task long:needle@4k/en: its problems have a length in tokens")
    with pytest.raises(EvaluationError, match="pairs are built from other tasks"):
        read_questions(stage, seed=0)


def test_problems_with_functions_are_never_asked_without_them(tmp_path: Path) -> None:
    row = {
        "id": "irrelevance_0",
        "question": [[{"role": "user", "content": "What is 1+2?"}]],
        "function": [{"name": "look", "parameters": {"type": "dict", "properties": {}}}],
    }
    (tmp_path / "BFCL_v4_irrelevance.json").write_text(json.dumps(row))
    stage = PairsStage(name="p", model="m", tasks=(f"bfcl:irrelevance@{tmp_path}",))
    ((key, message),) = issues(stage)
    assert key == "tasks" and "its problems offer functions" in message
    with pytest.raises(EvaluationError, match="which rows of pairs would lack"):
        read_questions(stage, seed=0)


@pytest.mark.parametrize(
    ("keys", "refused"),
    [
        ({}, {"tasks"}),
        ({"tasks": ("t",), "modes": ()}, {"modes"}),
        ({"tasks": ("t",), "modes": ("think", "think")}, {"modes"}),
        ({"data": {}}, {"data.verifier"}),
        ({"data": {}, "rejected_model": "w"}, set()),
        ({"data": {"verifier": "integer"}, "rejected_model": "w"}, {"data.verifier"}),
        ({"data": {}, "chosen": "row", "rejected_model": "w"}, {"chosen"}),
        ({"data": {}, "chosen": "row", "tasks": ("t",)}, {"tasks"}),
        ({"data": {}, "chosen": "row", "pairs_per_prompt": 2}, {"pairs_per_prompt"}),
        ({"data": {}, "chosen": "row", "choose": "best_worst"}, {"choose"}),
    ],
)
def test_keys_that_contradict_each_other_are_refused(
    keys: dict[str, Any], refused: set[str]
) -> None:
    if "data" in keys:
        keys = {**keys, "data": AskedRows(sources=(SourceConfig(path="x.jsonl"),), **keys["data"])}
    stage = PairsStage(name="p", model="m", **keys)
    assert {key for key, _ in stage.problems()} == refused
