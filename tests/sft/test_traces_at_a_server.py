"""Traces that a server gives: llama.cpp's own, one that fails, and runs that are killed while they ask."""

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dualign.cli.main import main
from dualign.generation.config import Endpoint
from dualign.rundir import read_run
from dualign.sft.traces import run
from dualign.verifiers.contains import ContainsVerifier
from tests.chat_model import LEARNT
from tests.generation.kills import run_with_kills
from tests.generation.servers import (
    Proxy,
    Reply,
    chat_reply,
    embedded_gguf,
    failing,
    llama_server,
    thirds,
)
from tests.sft.sums import LINES, Teacher, recipe, stage, traces_of, write, written


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rows") / "sums.jsonl", LINES)


def test_llama_cpp_gives_the_rows_that_the_same_model_gives_in_this_process(
    learnt: Path, learnt_server: str, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir(), (tmp_path / "there").mkdir()
    sure = {"temperature": 0.0, "tries": 1, "both_modes": True}
    run(stage(str(learnt), rows, **sure), tmp_path / "here", seed=1)
    metrics = run(stage(learnt_server, rows, **sure), tmp_path / "there", seed=1).metrics
    assert traces_of(tmp_path / "there") == [thought for thought, *_ in LEARNT.values()]
    ours, theirs = (
        [{key: value for key, value in row.items() if key != "provenance"} for row in written(work)]
        for work in (tmp_path / "here", tmp_path / "there")
    )
    assert theirs == ours
    asked = metrics["endpoints"]["teacher"]
    assert (asked["answers"], asked["failed"]) == (4, {})
    assert metrics["trace_tokens"]["max"] >= len("two twice is"), "with the server's own count"


def test_what_a_server_refuses_has_no_trace_and_is_counted(rows: Path, tmp_path: Path) -> None:
    def refuse(number: int, body: dict[str, Any]) -> Reply | None:
        return failing("not that", 400) if "4+5" in body["messages"][-1]["content"] else None

    with Proxy(Teacher(), refuse).running() as server:
        endpoint = Endpoint(url=server.address, name="teacher", concurrency=1, max_failed=0.5)
        metrics = run(stage(endpoint, rows, tries=2), tmp_path, seed=1).metrics
    assert metrics["without_trace"] == {"failed": 1, "no_right_answer": 1}
    assert metrics["endpoints"]["teacher"]["failed"] == {"400": 2}
    assert written(tmp_path)[1]["provenance"]["without_trace"] == "failed"


def by_seed(body: Mapping[str, Any]) -> Reply:
    """Right at every third seed, which the trace says."""
    time.sleep(0.01)
    number, seed = int(re.findall(r"\d+", body["messages"][-1]["content"])[0]), body["seed"]
    return 200, {}, chat_reply(f"{number + bool(seed % 3)}", reasoning=f"seed {seed}")


def many(folder: Path, count: int) -> Path:
    """The file of so many questions that `by_seed` answers."""
    lines = [
        {"id": f"{n}", "question": f"What is {n}?", "reply": f"{n}", "sum": n} for n in range(count)
    ]
    return write(folder / "many.jsonl", lines)


def test_a_server_that_fails_a_third_of_its_requests_gives_the_same_rows(tmp_path: Path) -> None:
    """Every kind of failure comes, several requests are on their way at a time, and one is right at random."""
    works = [tmp_path / "whole", tmp_path / "mended"]
    outcomes = []
    with Proxy(by_seed).running() as server:
        model = Endpoint(
            url=server.address, name="teacher", concurrency=4, max_wait_seconds=0.05, tries=20
        )
        for work, fault in zip(works, (lambda number, body: None, thirds), strict=True):
            work.mkdir()
            server.fault, server.asked = fault, []
            outcomes.append(run(stage(model, many(tmp_path, 12)), work, seed=1))
    asked = [outcome.metrics["endpoints"]["teacher"] for outcome in outcomes]
    assert asked[1]["answers"] == asked[0]["answers"] >= 12 and not asked[1]["failed"]
    tries = asked[1]["failed_tries"]
    assert sum(tries.values()) == len(server.asked) - asked[1]["answers"] >= len(server.asked) // 4
    assert tries.keys() == {"429", "500", "connection", "garbage", "finish_reason abort"}
    lines = [(work / "traces.jsonl").read_text() for work in works]
    assert lines[0] == lines[1]
    assert outcomes[0].rows == outcomes[1].rows


def answered(file: Path) -> set[int]:
    """The seeds of the answers that the file holds, the last line apart if it was cut."""
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
    return {int(re.findall(r"seed (\d+)", json.loads(line)["generated"])[0]) for line in lines}


@pytest.mark.parametrize(
    ("kills", "questions"), [(2, 24), pytest.param(20, 400, marks=pytest.mark.slow)]
)
def test_after_kill_9_nothing_answered_is_asked_again_and_the_file_is_the_same(
    tmp_path: Path, kills: int, questions: int
) -> None:
    rows = many(tmp_path, questions)
    whole, killed, concurrency = tmp_path / "whole", tmp_path / "killed", 4
    with Proxy(by_seed).running() as server:
        model = {"url": server.address, "name": "teacher", "concurrency": concurrency}
        file = str(recipe(tmp_path, rows, model, max_new_tokens=40))
        assert main(["run", file, f"output_dir={whole}"]) == 0
        requests = len(server.asked)
        working = killed / ".traces.partial" / "generations.jsonl"
        known = run_with_kills(
            ["run", file, f"output_dir={killed}"],
            server,
            kills=kills,
            requests=requests,
            label=lambda body: body["seed"],
            answered=lambda: answered(working),
        )
    assert len(known) == requests > questions
    # Asked twice is only what was on its way at a kill, or arrived but wasn't on the disk yet.
    print(f"{requests} answers, {kills} kills, {known.total() - requests} asked twice")
    assert known.total() - requests <= kills * 2 * concurrency
    name = "traces/traces.jsonl"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
    generations = [
        sorted((out / "traces" / "generations.jsonl").read_text().splitlines())
        for out in (whole, killed)
    ]
    assert generations[0] == generations[1]
    assert read_run(killed / "traces")["rows"] == read_run(whole / "traces")["rows"]


@pytest.mark.slow
def test_the_embedded_model_makes_traces_through_its_own_gguf(tmp_path: Path) -> None:
    """A third of the requests fails, and the rows are those of the server alone."""
    capitals = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Spain": "Madrid"}
    lines = [
        {"question": f"What is the capital of {country}?", "reply": city}
        for country, city in capitals.items()
    ]
    rows = write(tmp_path / "capitals.jsonl", lines)
    keys = {"verifier": ContainsVerifier(), "expected": None, "trace": "answer"}
    keys |= {"instruction": "Answer in a sentence.", "temperature": 0.7, "choose": "all"}
    outcomes = []
    with llama_server(embedded_gguf(), slots=1) as address, Proxy(address).running() as server:
        model = Endpoint(
            url=server.address,
            name="SmolLM2",
            mode_switch="none",
            concurrency=1,
            max_wait_seconds=0.05,
        )
        for name, fault in (("whole", lambda number, body: None), ("mended", thirds)):
            (tmp_path / name).mkdir()
            server.fault, server.asked = fault, []
            outcomes.append(run(stage(model, rows, **keys), tmp_path / name, seed=1))
    whole, mended = (written(tmp_path / name) for name in ("whole", "mended"))
    assert mended == whole
    assert outcomes[1].rows == outcomes[0].rows
    assert outcomes[0].metrics["think_rows"] >= 4
    assert sum(outcomes[1].metrics["endpoints"]["SmolLM2"]["failed_tries"].values()) >= 5
    first = whole[0]["messages"][-1]
    assert first["content"] == "Paris" and "Paris" in first["reasoning_content"]
    assert len(first["reasoning_content"].split()) > 1
