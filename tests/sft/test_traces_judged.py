"""Traces that a judge accepts, where nothing says what is right."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dualign.cli.main import main
from dualign.config import Document, parse
from dualign.generation.config import Endpoint
from dualign.judges.config import PairwiseConfig, RubricConfig
from dualign.rundir import read_run
from dualign.sft.config import TracesStage
from dualign.sft.traces import run
from tests.generation.servers import Proxy, Reply, chat_reply
from tests.sft.sums import LINES, Teacher, recipe, stage, traces_of, write, written

ROW = re.compile(r"It is (\d+)\.")
ANSWERS = re.compile(r" answer A\n(.*)\n=== \w+ answer B\n(.*)\n=== \w+ end\n")
SCORED = re.compile(r" an answer that is known to be good\n.*?(\d+)\.\n=== \w+ answer\n(.*)\n===")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rows") / "sums.jsonl", LINES)


@pytest.fixture
def teacher() -> Iterator[Proxy]:
    with Proxy(Teacher()).running() as proxy:
        yield proxy


def compares(body: dict[str, Any]) -> Reply:
    """The row's answer ends in a full stop; the other is as good if it has the same number."""
    match = ANSWERS.search(body["messages"][-1]["content"])
    assert match is not None
    numbers = [re.search(r"\d+", text) for text in match.groups()]
    assert all(numbers)
    first, second = (number[0] for number in numbers if number)
    better = "tie" if first == second else "A" if match[1].startswith("It is") else "B"
    return 200, {}, chat_reply(f'{{"better": "{better}"}}')


def scores(body: dict[str, Any]) -> Reply:
    """10 less the distance from the row's answer."""
    match = SCORED.search(body["messages"][-1]["content"])
    assert match is not None
    return 200, {}, chat_reply(f'{{"score": {10 - abs(int(match[1]) - int(match[2]))}}}')


def judged(
    kind: Callable[..., Any], server: Proxy, teacher: Proxy, rows: Path, **keys: Any
) -> TracesStage:
    endpoint = Endpoint(url=server.address, name="judge", mode_switch="none")
    return stage(
        teacher.address, rows, verifier=None, expected=None, judge=kind(model=endpoint), **keys
    )


def test_an_answer_that_is_not_worse_than_the_rows_own_gives_a_trace(
    teacher: Proxy, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Proxy(compares).running() as server:
        outcome = run(judged(PairwiseConfig, server, teacher, rows, tries=6), tmp_path, seed=1)
    assert traces_of(tmp_path) == ["so it is 3", "so 9", "so 4"], "as the verifier decides"
    assert written(tmp_path)[0]["provenance"]["judge"] == "judge"
    assert written(tmp_path)[-1]["provenance"]["without_trace"] == "judged_worse"
    metrics = outcome.metrics
    assert metrics["rejected"] == {"judged_worse": 1 + 6}
    assert metrics["judge"]["comparisons"]["decided"] == 7
    assert metrics["judge"]["comparisons"]["tie"] == 3
    assert list(metrics["endpoints"]) == ["teacher"], "who judges writes no rows"
    assert metrics["judge"]["endpoint"]["answers"] == len(server.asked)
    assert "stage traces: judge judge: decided 7, tie 3" in capsys.readouterr().out


def test_an_answer_needs_the_score_of_at_least(teacher: Proxy, rows: Path, tmp_path: Path) -> None:
    keys = {"tries": 2, "choose": "all"}
    for least, count, low in ((10.0, 5, 3), (9.0, 7, 0)):  # the last says the same twice
        work = tmp_path / str(least)
        work.mkdir()
        with Proxy(scores).running() as server:
            asked = judged(RubricConfig, server, teacher, rows, at_least=least, **keys)
            metrics = run(asked, work, seed=1).metrics
        assert len(traces_of(work)) == count
        assert metrics["rejected"].get("low_score", 0) == low


def test_what_could_not_be_judged_is_counted(teacher: Proxy, rows: Path, tmp_path: Path) -> None:
    def places(body: dict[str, Any]) -> Reply:
        is_first = "What is 1+2?" in body["messages"][-1]["content"]
        return (200, {}, chat_reply('{"better": "A"}')) if is_first else compares(body)

    with Proxy(places).running() as server:
        metrics = run(
            judged(PairwiseConfig, server, teacher, rows, tries=1), tmp_path, seed=1
        ).metrics
    assert metrics["without_trace"] == {"judged_worse": 2, "not_judged": 1}


def problems(**keys: Any) -> str:
    entry = {
        "name": "traces", "kind": "traces", "model": "m", "data": {"sources": [{"path": "x.jsonl"}]}
    } | keys  # fmt: skip
    document = Document(file="recipe.yaml")
    parse(TracesStage, entry, document)
    return "\n".join(document.problems)


PAIRWISE = {"kind": "pairwise", "model": "m"}
RUBRIC = {"kind": "rubric", "model": "m"}


def test_a_stage_has_a_verifier_or_a_judge(rows: Path) -> None:
    assert "expected verifier, or judge in its place, found none" in problems()
    assert "found both" in problems(verifier="integer", judge=PAIRWISE)
    assert "needs the lowest score" in problems(judge=RUBRIC)
    assert "expected a score of 1 to 10, found 11" in problems(judge=RUBRIC, at_least=11)
    assert "only a judge that scores" in problems(judge=PAIRWISE, at_least=1)
    assert "only a judge that scores" in problems(verifier="integer", at_least=1)
    assert "a judge sees the row's answer" in problems(judge=PAIRWISE, expected="{x}")
    assert "needs the key 'kind' (one of pairwise, rubric, reward_model)" in problems(
        judge={"model": "m"}
    )
    assert "expected [lowest, highest], found [10, 1]" in problems(
        judge={**RUBRIC, "scale": [10, 1]}, at_least=1
    )
    server = {"kind": "reward_model", "model": "http://127.0.0.1:8000/v1"}
    assert "expected a hub id or a folder" in problems(judge=server, at_least=0)
    key = {"kind": "pairwise", "model": {"url": "http://h/v1", "body": {"api_key": "sk-12345678"}}}
    found = problems(judge=key)
    assert "judge.model.body.api_key: looks like a key" in found and "sk-1" not in found
    assert not problems(judge=PAIRWISE) and not problems(judge=RUBRIC, at_least=0.0 + 5)


def test_plan_says_what_judging_costs_and_what_is_missing(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"url": "http://127.0.0.1:9/v1", "name": "big", "price_in": 1.0, "price_out": 2.0}
    keys: dict[str, Any] = {"verifier": None, "expected": None}
    file = recipe(tmp_path, rows, model, judge=PAIRWISE | {"model": model}, **keys)
    assert main(["plan", str(file)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "judge big at http://127.0.0.1:9/v1: 32 requests" in shown
    assert "and at most 32,768 of answers; at most 0." in shown and "both orders asked" in shown
    monkeypatch.delenv("NOT_SET_KEY", raising=False)
    for judge, words in (
        (RUBRIC | {"model": {**model, "key_env": "NOT_SET_KEY"}}, "NOT_SET_KEY isn't set"),
        (RUBRIC | {"model": "./none"}, "./none: no such folder"),
        ({"kind": "reward_model", "model": str(tmp_path)}, "no model"),
    ):
        main(["plan", str(recipe(tmp_path, rows, model, judge=judge, at_least=5, **keys))])
        printed = capsys.readouterr()
        text = " ".join((printed.out + printed.err).split())
        assert "judge.model" in text and words in text


def test_a_judge_is_part_of_the_fingerprint_and_how_it_is_asked_is_not(
    rows: Path, tmp_path: Path
) -> None:
    from dualign.engine import statuses
    from dualign.recipe import load_recipe

    def fingerprint(judge: dict[str, Any], at_least: float = 5) -> str:
        keys: dict[str, Any] = {"verifier": None, "expected": None, "at_least": at_least}
        file = recipe(tmp_path, rows, {"url": "http://h/v1", "name": "t"}, judge=judge, **keys)
        (status,) = statuses(load_recipe(file, []))
        return status.fingerprint

    server = {"url": "http://h/v1", "name": "big"}
    base = RUBRIC | {"model": server}
    usual = fingerprint(base)
    assert fingerprint(base | {"model": server | {"concurrency": 2, "max_cost": None}}) == usual
    others = [
        fingerprint(base | {"model": server | {"name": "bigger"}}),
        fingerprint(base | {"rubric": "Is it polite?"}),
        fingerprint(base | {"scale": [1, 5]}),
        fingerprint(base | {"mode": "think"}),
        fingerprint(base, at_least=6),
    ]
    assert len({usual, *others}) == 6


def test_a_bound_of_the_judge_changes_no_fingerprint(rows: Path, tmp_path: Path) -> None:
    from dualign.engine import statuses
    from dualign.recipe import load_recipe

    found = set()
    for bound in (0.5, 0.2):
        judge = PAIRWISE | {"model": {"url": "http://h/v1", "name": "b"}, "min_consistent": bound}
        model = {"url": "http://h/v1", "name": "t"}
        file = recipe(tmp_path, rows, model, judge=judge, verifier=None, expected=None)
        found.add(statuses(load_recipe(file, []))[0].fingerprint)
    assert len(found) == 1


def test_the_report_shows_what_the_judge_said(teacher: Proxy, rows: Path, tmp_path: Path) -> None:
    with Proxy(compares).running() as server:
        keys: dict[str, Any] = {"verifier": None, "expected": None, "tries": 6}
        judge = PAIRWISE | {"model": {"url": server.address, "name": "big"}}
        model = {"url": teacher.address, "name": "teacher", "concurrency": 1}
        file = str(recipe(tmp_path, rows, model, judge=judge, **keys))
        assert main(["run", file]) == 0
    record = read_run(tmp_path / "runs" / "traces")
    assert record["metrics"]["judge"]["first_place"]["share"] == 0.5
    assert main(["report", file]) == 0
    text = (tmp_path / "runs" / "report.md").read_text()
    assert "judged by big (pairwise)" in text
    assert re.search(r"both orders agree +\| +100 % \\?\[65, 100\\?\] of 7", text)
    json.dumps(record)
