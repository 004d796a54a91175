"""The quickstart's problems: every trace is worked again here, from the question alone."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart"
FAMILIES = ("sums", "routes", "prices")
ROWS = {"train": 30, "pairs": 24, "heldout-pairs": 6, "pair-prompts": 6, "test": 9}
SIZES = [word for name, rows in ROWS.items() for word in (f"--{name}", str(rows))]


def make(out: Path, *arguments: str) -> Path:
    command = [sys.executable, "-I", str(RECIPE / "problems.py"), "--out", str(out), *arguments]
    subprocess.run(command, check=True, capture_output=True)
    return out


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("data"), *SIZES, "--seed", "3")


def contents(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.jsonl"))
    return {str(file.relative_to(folder)): file.read_text(encoding="utf-8") for file in files}


def essence(question: str) -> tuple[object, ...]:
    """What the question asks, without the order in which it lists things."""
    if ">" in question:
        (start,) = re.findall(r"Start at ([A-G])", question)
        (hops,) = re.findall(r"\d+", question)
        return "routes", start, int(hops), *sorted(re.findall(r"[A-G]>[A-G]", question))
    if question.startswith("Prices"):
        listed, bought = re.fullmatch(
            r"Prices: (.*)\. What do these cost together: (.*)\?", question
        ).groups()
        return "prices", *sorted(listed.split(", ")), "for", *sorted(bought.split(", "))
    return "sums", *sorted(int(number) for number in re.findall(r"\d+", question))


def work(question: str) -> tuple[str, str]:
    """The trace and the answer that a question should have."""
    family, *_ = essence(question)
    makers = {"sums": work_sum, "routes": work_route, "prices": work_price}
    return makers[str(family)](question)


def work_sum(question: str) -> tuple[str, str]:
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    steps = [
        f"{sum(numbers[:n])} + {numbers[n]} = {sum(numbers[: n + 1])}"
        for n in range(1, len(numbers))
    ]
    return "\n".join(steps), str(sum(numbers))


def work_route(question: str) -> tuple[str, str]:
    _, place, hops, *arrows = essence(question)
    onward = dict(str(arrow).split(">") for arrow in arrows)
    path = [str(place)]
    for _ in range(int(str(hops))):
        path.append(onward[path[-1]])
    steps = [f"{n}: {a}>{b}" for n, (a, b) in enumerate(pairwise(path), 1)]
    return "\n".join(steps), path[-1]


def work_price(question: str) -> tuple[str, str]:
    listed, bought = question.removeprefix("Prices: ").split(". What do these cost together: ")
    price = {name: int(cost) for name, cost in (item.split() for item in listed.split(", "))}
    first, *others = bought.rstrip("?").split(", ")
    steps, total = [f"{first} {price[first]}"], price[first]
    for good in others:
        steps.append(f"{good} {price[good]}: {total} + {price[good]} = {total + price[good]}")
        total += price[good]
    return "\n".join(steps), str(total)


def check(question: str) -> str:
    """The line that goes over the work once more."""
    trace, answer = work(question)
    if ">" in question:
        places = [step.split(": ")[1].split(">") for step in trace.split("\n")]
        return f"check: {'>'.join([places[0][0], *(to for _, to in places)])}"
    if question.startswith("Prices"):
        listed, bought = question.rstrip("?").split(". What do these cost together: ")
        price = dict(item.split() for item in listed.removeprefix("Prices: ").split(", "))
        return f"check: {' + '.join(price[good] for good in bought.split(', '))} = {answer}"
    return f"check: {question.split(': ')[1].replace(', ', ' + ')} = {answer}"


def questions(folder: Path, name: str) -> Iterator[str]:
    for row in read(folder / name):
        if row.get("family") != "chat":
            turns = row.get("messages") or row.get("prompt")
            yield turns if isinstance(turns, str) else turns[0]["content"]


def test_the_same_seed_gives_the_same_files(tmp_path: Path, data: Path) -> None:
    again = make(tmp_path, *SIZES, "--seed", "3")
    assert contents(again) == contents(data)


def test_another_seed_gives_other_problems(tmp_path: Path, data: Path) -> None:
    other = make(tmp_path, *SIZES, "--seed", "4")
    mine = {essence(question) for question in questions(data, "train.jsonl")}
    theirs = {essence(question) for question in questions(other, "train.jsonl")}
    assert len(mine & theirs) < len(mine) / 10


def test_no_problem_is_in_two_files_nor_twice_in_one(data: Path) -> None:
    asked = Counter(essence(q) for name in contents(data) for q in questions(data, name))
    assert max(asked.values()) == 1
    assert len(asked) == 3 * sum(ROWS.values())


def test_every_training_trace_and_answer_is_right(data: Path) -> None:
    for row in read(data / "train.jsonl"):
        user, assistant = row["messages"]
        if row["family"] == "chat":
            continue
        trace, answer = work(user["content"])
        assert assistant["content"] == answer
        traces = (
            {None} if row["mode"] == "no_think" else {trace, f"{trace}\n{check(user['content'])}"}
        )
        assert assistant.get("reasoning_content") in traces


def test_most_training_traces_have_a_check_in_each_family_and_difficulty(data: Path) -> None:
    rows = [row for row in read(data / "train.jsonl") if row["family"] != "chat"]
    checked = Counter(
        (row["family"], row["difficulty"], "check: " in row["messages"][1]["reasoning_content"])
        for row in rows
        if row["mode"] == "think"
    )
    # 30 problems of a family are 5 of each difficulty and mode; the fourth has no check.
    assert checked == {
        (family, difficulty, has_check): 4 if has_check else 1
        for family, difficulties in (
            ("sums", (3, 4, 5)),
            ("routes", (2, 3, 4)),
            ("prices", (2, 3, 4)),
        )
        for difficulty in difficulties
        for has_check in (True, False)
    }


def test_half_of_the_think_pairs_prefer_the_same_work_without_its_check(data: Path) -> None:
    pairs = [row for row in read(data / "pairs.jsonl") if row["mode"] == "think"]
    shorter = [row for row in pairs if row["prefers"] == "shorter"]
    assert len(shorter) == len(pairs) / 2
    for row in shorter:
        question = row["prompt"][0]["content"]
        trace, answer = work(question)
        (chosen,), (rejected,) = row["chosen"], row["rejected"]
        assert chosen["content"] == rejected["content"] == answer
        assert chosen["reasoning_content"] == trace
        assert rejected["reasoning_content"] == f"{trace}\n{check(question)}"


def test_a_quarter_of_the_think_pairs_prefer_work_that_is_complete(data: Path) -> None:
    pairs = [row for row in read(data / "pairs.jsonl") if row["mode"] == "think"]
    complete = [row for row in pairs if row["prefers"] == "complete"]
    assert len(complete) == len(pairs) / 4
    for row in complete:
        trace, answer = work(row["prompt"][0]["content"])
        (chosen,), (rejected,) = row["chosen"], row["rejected"]
        assert (chosen["reasoning_content"], chosen["content"]) == (trace, answer)
        early = trace.split("\n")[:-1]
        assert rejected["reasoning_content"].split("\n") == early
        # the last number, or the place, of the last step that is there
        assert rejected["content"] == re.findall(r"\d+|[A-G]", early[-1])[-1] != answer


def test_pairs_of_no_think_and_held_out_pairs_prefer_right_work(data: Path) -> None:
    others = [row for row in read(data / "pairs.jsonl") if row["mode"] == "no_think"]
    assert {row["prefers"] for row in [*others, *read(data / "heldout_pairs.jsonl")]} == {"right"}


def test_every_task_answer_is_right(data: Path) -> None:
    for folder in ("test", "pair_prompts"):
        for family in FAMILIES:
            for row in read(data / folder / f"{family}.jsonl"):
                assert row["answer"] == work(row["prompt"])[1]


@pytest.mark.parametrize("name", ["pairs.jsonl", "heldout_pairs.jsonl"])
def test_chosen_is_right_and_rejected_slips_in_exactly_one_step(data: Path, name: str) -> None:
    for row in read(data / name):
        if row["prefers"] != "right":
            continue
        trace, answer = work(row["prompt"][0]["content"])
        (chosen,), (rejected,) = row["chosen"], row["rejected"]
        assert chosen["content"] == answer != rejected["content"]
        assert (row["mode"] == "think") == ("reasoning_content" in chosen)
        assert ("reasoning_content" in chosen) == ("reasoning_content" in rejected)
        if row["mode"] == "think":
            assert chosen["reasoning_content"] == trace
            assert len(bad_steps(row, rejected["reasoning_content"])) == 1


def bad_steps(row: dict[str, Any], trace: str) -> list[str]:
    """The steps that do not follow from the step before them, or from the question."""
    question = row["prompt"][0]["content"]
    steps, good = trace.split("\n"), work(question)[0].split("\n")
    if row["family"] == "routes":
        return [step for step in steps if step.split(": ")[1] not in essence(question)]
    first = [0, *rises(steps)] if row["family"] == "prices" else rises(steps)
    right = [0, *rises(good)] if row["family"] == "prices" else rises(good)
    wrong = [step for step, a, b in zip(steps, first, right, strict=True) if a != b]
    # The first price of a list is read, not added.
    return wrong + (steps[:1] if row["family"] == "prices" and steps[0] != good[0] else [])


def rises(steps: list[str]) -> list[int]:
    """By how much each addition raises the running total."""
    sums = [re.findall(r"(\d+) \+ \d+ = (\d+)", step) for step in steps]
    return [int(after) - int(before) for found in sums for before, after in found]


@pytest.mark.parametrize("name", ["train.jsonl", "pairs.jsonl", "heldout_pairs.jsonl"])
def test_the_modes_are_balanced_in_each_family_and_difficulty(data: Path, name: str) -> None:
    rows = [row for row in read(data / name) if row["family"] != "chat"]
    cells = Counter((row["family"], row["difficulty"], row["mode"]) for row in rows)
    assert len(cells) == 3 * 3 * 2
    assert len(set(cells.values())) == 1


def test_ids_name_one_row_each(data: Path) -> None:
    ids = [row["id"] for name in contents(data) for row in read(data / name)]
    assert len(ids) == len(set(ids))


def test_chat_is_mostly_without_thinking_and_never_leaks_tags(data: Path) -> None:
    chat = [row for row in read(data / "train.jsonl") if row["family"] == "chat"]
    modes = Counter(row["mode"] for row in chat)
    assert len(chat) >= 60
    assert modes["no_think"] > 3 * modes["think"] > 0
    for row in chat:
        answer = row["messages"][1]
        assert ("reasoning_content" in answer) == (row["mode"] == "think")
        assert "think>" not in json.dumps(row)


def test_more_training_rows_leave_the_test_set_as_it_is(tmp_path: Path, data: Path) -> None:
    more = make(tmp_path, *SIZES, "--seed", "3", "--train", "60")
    for family in FAMILIES:
        assert read(more / "test" / f"{family}.jsonl") == read(data / "test" / f"{family}.jsonl")


@pytest.mark.parametrize("family", FAMILIES)
def test_task_files_name_rows_that_the_script_writes(data: Path, family: str) -> None:
    for name in (family, f"pairs-{family}"):
        task = yaml.safe_load((RECIPE / "tasks" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert (data / "tasks" / task["rows"]).is_file()
        assert (data / "tasks" / f"{name}.yaml").is_file()
        assert task["prompt"] == "{prompt}"


def test_asking_for_more_problems_than_there_are_stops_with_a_message() -> None:
    sys.path.insert(0, str(RECIPE))
    from problems import FAMILIES as MAKERS
    from problems import Problem, distinct

    only = Problem(
        family="sums",
        difficulty=1,
        key="1",
        question="1",
        trace="1",
        check="1",
        early_answer="0",
        answer="1",
        wrong_trace="2",
        wrong_answer="2",
    )
    MAKERS["one"] = (lambda rng, difficulty: only, (1,))
    try:
        problems = distinct("one", "0")
        assert next(problems) is only
        with pytest.raises(SystemExit, match=r"family one, difficulty 1: .* 1 problem"):
            next(problems)
    finally:
        del MAKERS["one"]
