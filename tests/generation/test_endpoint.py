"""Answers of an endpoint: llama.cpp's own server, and a server that fails on purpose."""

import gc
import json
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dualign.cli.main import main
from dualign.engine import statuses
from dualign.errors import ConfigError, EvaluationError
from dualign.evaluation.config import EvalStage
from dualign.evaluation.evaluate import run
from dualign.generation.config import Endpoint, read_model
from dualign.generation.endpoint import EndpointResponder
from dualign.generation.sampling import Sampling
from dualign.recipe import load_recipe
from dualign.switch import Switch
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

KEY = "sk-do-not-write-me-7f3a9c"
VARIABLE = "DUALIGN_TEST_KEY"


def stage(*models: Any, tasks: list[Any], **options: Any) -> EvalStage:
    options = {"max_new_tokens": 40} | options
    return EvalStage(name="eval", models=models, tasks=tuple(map(str, tasks)), **options)


def rows_of(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    return {(row["id"], row["mode"]): row for row in map(json.loads, filter(None, lines))}


def sums(body: dict[str, Any]) -> Reply:
    """A server that knows the sums, with its trace in a field of its own."""
    asked = body["messages"][-1]["content"]
    thought, right, quick = next(LEARNT[sum_] for sum_ in LEARNT if sum_ in asked)
    if body["chat_template_kwargs"]["enable_thinking"]:
        return 200, {}, chat_reply(right, reasoning_content=thought)
    return 200, {}, chat_reply(quick)


def fast(address: str, **options: Any) -> Endpoint:
    return Endpoint(url=address, name="tiny", **options)


def test_llama_cpp_answers_as_the_same_model_in_this_process(
    learnt: Path, learnt_server: str, task_file: Path, tmp_path: Path
) -> None:
    here = run(stage(str(learnt), tasks=[task_file]), tmp_path / "here", seed=1)
    there = run(stage(learnt_server, tasks=[task_file]), tmp_path / "there", seed=1)
    for mode in ("think", "no_think"):
        ours, theirs = (outcome.metrics["tasks"]["sums"][mode] for outcome in (here, there))
        for figure in ("accuracy", "closed_rate", "leak_rate", "unfinished_rate"):
            assert theirs[figure] == ours[figure], (mode, figure)
    for key, row in rows_of(tmp_path / "there").items():
        ours = rows_of(tmp_path / "here")[key]
        assert (row["thinking"], row["answer"]) == (ours["thinking"], ours["answer"])
        assert row["usage"]["completion"] == row["think_tokens"] + row["answer_tokens"]
    asked = there.metrics["endpoints"][learnt_server]
    assert (asked["answers"], asked["failed"]) == (8, {})
    assert asked["completion_tokens"] > 30


def test_a_limit_inside_the_thinking_is_counted_as_cut(
    learnt_server: str, task_file: Path, tmp_path: Path
) -> None:
    short = stage(learnt_server, tasks=[task_file], max_new_tokens=5, max_new_tokens_no_think=40)
    tasks = run(short, tmp_path, seed=1).metrics["tasks"]["sums"]
    assert tasks["think"]["cut_in_think_rate"] == 1.0
    assert tasks["no_think"]["accuracy"] == 0.25


def test_sampling_is_seeded_where_the_server_takes_seeds(
    learnt_server: str, task_file: Path, tmp_path: Path
) -> None:
    warm = stage(fast(learnt_server, concurrency=1), tasks=[task_file], temperature=1.5)
    for name in ("a", "b"):
        run(warm, tmp_path / name, seed=1)
    first, again = (rows_of(tmp_path / name) for name in ("a", "b"))
    assert [row["generated"] for row in first.values()] == [
        row["generated"] for row in again.values()
    ]


@pytest.mark.parametrize("stream", [False, True], ids=["at once", "streamed"])
def test_a_server_that_fails_a_third_of_its_requests_gives_the_same_rows(
    learnt_server: str, task_file: Path, tmp_path: Path, stream: bool
) -> None:
    # One at a time: side by side, sums in another order could change a last bit.
    slowly = {"concurrency": 1, "max_wait_seconds": 0.05}
    with Proxy(learnt_server).running() as plain, Proxy(learnt_server, thirds).running() as bad:
        run(stage(fast(plain.address, **slowly), tasks=[task_file]), tmp_path / "a", seed=1)
        asked = run(
            stage(fast(bad.address, **slowly, stream=stream), tasks=[task_file]),
            tmp_path / "b",
            seed=1,
        ).metrics["endpoints"]["tiny"]
    whole, mended = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert all(asked.body.get("stream", False) is stream for asked in bad.asked)
    same = ("id", "mode", "thinking", "answer", "correct", "finished", "generated", "usage")
    assert [{k: row[k] for k in same} for row in mended.values()] == [
        {k: row[k] for k in same} for row in whole.values()
    ]
    tries = asked["failed_tries"]
    assert sum(tries.values()) == len(bad.asked) - 8 >= 3
    assert tries["429"] == tries["500"] == tries["connection"] == 1
    assert asked["failed"] == {}


@pytest.mark.slow  # when the garbage collector comes is luck, so this needs watching
def test_streams_leave_no_open_tasks_behind(
    learnt_server: str, task_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(stage(fast(learnt_server, stream=True), tasks=[task_file]), tmp_path, seed=1)
    gc.collect()
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


def test_what_a_server_asks_to_wait_is_waited_by_all(task_file: Path, tmp_path: Path) -> None:
    def first_is_busy(number: int, body: dict[str, Any]) -> Reply | None:
        return failing("slow down", 429, **{"Retry-After": "1"}) if number == 0 else None

    with Proxy(sums, first_is_busy).running() as server:
        run(stage(fast(server.address, concurrency=1), tasks=[task_file]), tmp_path, seed=1)
        times = [asked.at for asked in server.asked]
    assert len(times) == 9
    assert times[1] - times[0] >= 1


def test_a_wait_that_is_too_long_ends_the_stage_and_keeps_the_answers(
    task_file: Path, tmp_path: Path
) -> None:
    def later(number: int, body: dict[str, Any]) -> Reply | None:
        return failing("daily limit", 429, **{"Retry-After": "3600"}) if number == 3 else None

    with Proxy(sums, later).running() as server:
        subject = stage(fast(server.address, concurrency=1), tasks=[task_file])
        with pytest.raises(EvaluationError, match=r"asks to wait 3600 s .*daily limit.*run again"):
            run(subject, tmp_path, seed=1)
        assert not (tmp_path / "metrics.json").exists()
        run(subject, tmp_path, seed=1)
        assert len(server.asked) == 9  # three answers, the refusal, and the other five


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (failing(f"bad key {KEY}", 401), r"401 bad key \(the key\)"),
        (failing("no such model", 404), "404 no such model"),
        (failing("you exceeded insufficient_quota", 429), "429 you exceeded"),
    ],
    ids=["key", "model", "quota"],
)
def test_what_no_try_would_mend_ends_at_once_in_one_message(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: Reply, words: str
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    with Proxy(sums, lambda number, body: reply).running() as server:
        subject = fast(server.address, key_env=VARIABLE, concurrency=2)
        with pytest.raises(EvaluationError, match=words) as caught:
            run(stage(subject, tasks=[task_file]), tmp_path, seed=1)
        assert len(server.asked) <= 2
        assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value)


def test_too_many_failures_end_the_stage_with_their_reasons(
    task_file: Path, tmp_path: Path
) -> None:
    def long(number: int, body: dict[str, Any]) -> Reply | None:
        return failing("longer than the context", 400) if "4+5" in str(body) else None

    with Proxy(sums, long).running() as server:
        some = stage(fast(server.address, concurrency=1, max_failed=0.1), tasks=[task_file])
        with pytest.raises(EvaluationError, match=r"1 of 8 requests failed, more than max_failed"):
            run(some, tmp_path / "a", seed=1)
        more = stage(fast(server.address, concurrency=1, max_failed=0.5), tasks=[task_file])
        with pytest.raises(EvaluationError, match=r"2 of 8 requests got no answer \(400: 2\)"):
            run(more, tmp_path / "b", seed=1)
    kept = (tmp_path / "b" / "samples.jsonl").read_text(encoding="utf-8")
    assert len(kept.splitlines()) == 6


def test_slow_answers_time_out_and_nobody_there_is_said(task_file: Path, tmp_path: Path) -> None:
    quick = {"timeout_seconds": 0.3, "tries": 2, "concurrency": 1, "max_wait_seconds": 0.01}
    with Proxy(sums, lambda number, body: "slow").running() as server:
        subject = stage(fast(server.address, **quick), tasks=[task_file])
        with pytest.raises(EvaluationError, match=r"tries that failed: 2 timeout; .*within 0\.3 s"):
            run(subject, tmp_path / "a", seed=1)
    subject = stage(fast(server.address, **quick), tasks=[task_file])  # nobody listens there now
    with pytest.raises(EvaluationError, match=r"2 connection; the last: .*run again to go on"):
        run(subject, tmp_path / "b", seed=1)


def test_no_more_requests_at_a_time_and_in_a_minute_than_asked_for(
    task_file: Path, tmp_path: Path
) -> None:
    together = threading.Barrier(4)

    def with_three_others(body: dict[str, Any]) -> Reply:
        together.wait(600)
        return sums(body)

    with Proxy(with_three_others).running() as server:
        run(stage(fast(server.address, concurrency=4), tasks=[task_file]), tmp_path / "a", seed=1)
        assert server.most == 4
    with Proxy(sums).running() as server:
        paced = fast(server.address, requests_per_minute=600)
        run(stage(paced, tasks=[task_file]), tmp_path / "b", seed=1)
        times = sorted(asked.at for asked in server.asked)
    # Seven gaps of 100 ms, less what the first took to arrive.
    assert times[-1] - times[0] >= 0.3


def test_a_budget_is_never_exceeded_and_goes_on_when_it_is_raised(
    task_file: Path, tmp_path: Path
) -> None:
    prices = {"price_in": 1.0, "price_out": 10.0}
    with Proxy(sums).running() as server:
        tight = fast(server.address, max_total_tokens=150, concurrency=8)
        with pytest.raises(EvaluationError, match=r"the budget is spent \(\d+ tokens; .*max_total"):
            run(stage(tight, tasks=[task_file]), tmp_path, seed=1)
        first = len(server.asked)
        assert 0 < first < 8
        with pytest.raises(EvaluationError, match="the budget is spent"):  # counts what it knows
            run(stage(tight, tasks=[task_file]), tmp_path, seed=1)
        assert len(server.asked) == first
        cheap = fast(server.address, max_cost=0.0001, **prices)
        with pytest.raises(EvaluationError, match=r"by its prices"):
            run(stage(cheap, tasks=[task_file]), tmp_path, seed=1)
        assert len(server.asked) == first
        enough = fast(server.address, max_cost=1.0, max_total_tokens=10_000, **prices)
        asked = run(stage(enough, tasks=[task_file]), tmp_path, seed=1).metrics["endpoints"]["tiny"]
        assert len(server.asked) == 8
    assert (asked["answers"], asked["answered_before"]) == (8 - first, first)
    assert (asked["prompt_tokens"], asked["completion_tokens"]) == (56, 40)
    assert asked["cost"] == pytest.approx((56 * 1.0 + 40 * 10.0) / 1e6)


@pytest.mark.parametrize(("way", "right"), [(None, 0.0), ("none", 1.0)])
def test_a_trace_that_was_cut_without_a_tag_is_no_answer(
    task_file: Path, tmp_path: Path, way: str | None, right: float
) -> None:
    def cut(body: dict[str, Any]) -> Reply:  # the server's template opened the block
        return 200, {}, chat_reply(f"It may be {body['messages'][-1]['content']}", "length")

    with Proxy(cut).running() as server:
        subject = stage(fast(server.address, mode_switch=way), tasks=[many(tmp_path, 4)])
        think, no_think = (
            run(subject, tmp_path / "out", seed=1).metrics["tasks"]["many"][mode]
            for mode in ("think", "no_think")
        )
    assert (think["accuracy"], no_think["accuracy"]) == (right, 1.0)


def test_a_reply_that_is_no_answer_counts_against_the_budget(
    task_file: Path, tmp_path: Path
) -> None:
    filtered: Reply = (200, {}, chat_reply("", "content_filter"))
    with Proxy(sums, lambda number, body: filtered).running() as server:
        tight = fast(server.address, max_total_tokens=150, concurrency=1, max_wait_seconds=0.01)
        with pytest.raises(EvaluationError, match=r"the budget is spent \((?!0)\d+ tokens"):
            run(stage(tight, tasks=[task_file]), tmp_path, seed=1)
        assert 0 < len(server.asked) * 12 <= 150


def test_a_server_that_asks_to_wait_no_time_gets_some(task_file: Path, tmp_path: Path) -> None:
    def busy(number: int, body: dict[str, Any]) -> Reply | None:
        return failing("slow down", 429, **{"Retry-After": "0"}) if number < 3 else None

    with Proxy(sums, busy).running() as server:
        run(stage(fast(server.address, concurrency=1), tasks=[task_file]), tmp_path, seed=1)
        times = [asked.at for asked in server.asked]
    assert times[3] - times[0] >= 0.25 + 0.5 + 1.0


def recipe(folder: Path, task_file: Path, address: str, **options: Any) -> Path:
    endpoint = {"url": address, "name": "tiny"} | options
    entry = {"name": "eval", "kind": "eval", "models": [endpoint], "tasks": [str(task_file)]}
    whole = {"output_dir": str(folder / "runs"), "stages": [entry | {"max_new_tokens": 40}]}
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(whole), encoding="utf-8")  # JSON is YAML
    return file


def test_what_changes_no_answer_makes_no_stage_run_again(task_file: Path, tmp_path: Path) -> None:
    def digest(**options: Any) -> str:
        file = recipe(tmp_path, task_file, "http://host/v1", **options)
        return statuses(load_recipe(file, []), remember=False)[0].fingerprint

    plain = digest()
    assert plain == digest(key_env="A_KEY", concurrency=2, price_in=1, price_out=2, max_cost=3)
    assert plain == digest(stream=True, tries=1, timeout_seconds=1, max_total_tokens=5)
    others = [{"name": "big"}, {"mode_switch": "user"}, {"body": {"top_k": 1}}, {"url": "http://b"}]
    assert len({plain, *(digest(**other) for other in others)}) == 5


def test_plan_says_what_it_would_cost_without_asking(
    task_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    prices = {"price_in": 2.0, "price_out": 10.0, "max_total_tokens": 100}
    file = recipe(tmp_path, task_file, "http://127.0.0.1:9/v1", key_env=VARIABLE, **prices)
    assert main(["plan", str(file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    counts = re.search(
        r"8 requests, about (\d+) tokens of prompts and at most 320 of answers", said
    )
    assert counts is not None and 100 < int(counts[1]) < 200
    assert f"at most {(int(counts[1]) * 2 + 3200) / 1e6:.4f} by its prices" in said
    assert "max_total_tokens (100) may end it earlier" in said
    monkeypatch.delenv(VARIABLE)
    for command in ("plan", "run"):  # before any stage starts
        assert main([command, str(file)]) == 2
        assert f"stage eval: models: tiny: the environment variable {VARIABLE} isn't set" in (
            capsys.readouterr().err
        )


def test_the_key_is_in_no_file_and_no_message(
    task_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    # Of another server, to which they would go with any client.
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-another")
    headers = "X-Gateway: gate-of-another\nauthorization: Bearer key-of-another"
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", headers)

    def talkative(number: int, body: dict[str, Any]) -> Reply | None:
        return failing(f"you came with {KEY}", 500) if number % 2 == 0 else None

    with Proxy(sums, talkative).running() as server:
        options = {"key_env": VARIABLE, "concurrency": 1, "max_wait_seconds": 0.01}
        file = recipe(tmp_path, task_file, server.address, **options)
        assert main(["run", str(file)]) == 0
        assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
        assert "of-another" not in str([asked.headers for asked in server.asked])
        server.fault = lambda number, body: failing(f"you came with {KEY}", 500)
        assert main(["run", str(file), "eval.max_new_tokens=41", "eval.models.0.tries=1"]) == 2
    said = capfd.readouterr()
    assert "you came with (the key)" in said.err
    assert KEY not in said.out + said.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"run.json", "samples.jsonl", "metrics.json"} <= {path.name for path in files}
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key_env": KEY}, "key_env: expected the name of an environment variable"),
        ({"api_key": KEY}, "unknown key.*here: key_env"),
        ({"url": f"http://user:{KEY}@host/v1"}, "url: holds a user, a password"),
        ({"url": f"http://user:{KEY}/x@host/v1"}, "url: not an address"),
        ({"url": f"https:/user:{KEY}@host/v1"}, "url: expected http://HOST:PORT/v1 .what stands"),
        ({"url": f"http://host/v1?api_key={KEY}"}, "url: holds a user, a password"),
        (
            {"body": {"extra_headers": {"Authorization": f"Bearer {KEY}"}}},
            r"body\.extra_headers\.Authorization: looks like a key",
        ),
        ({"body": {"auth": [{"token": KEY}]}}, r"body\.auth\.token: looks like a key"),
        ({"body": {"extra": {"api_key": KEY}}}, r"body\.extra\.api_key: looks like a key"),
    ],
)
def test_a_key_in_a_recipe_is_refused_and_not_printed(
    task_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    words: str,
) -> None:
    file = recipe(tmp_path, task_file, "http://host/v1", **{"name": "tiny", **options})
    if "url" in options:
        file.write_text(file.read_text().replace("http://host/v1", options["url"]))
    assert main(["plan", str(file)]) == 2
    said = capsys.readouterr()
    assert re.search(words, said.err)
    assert KEY not in said.out + said.err


def test_a_key_that_is_missing_or_stands_in_the_settings_is_said(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    subject = Endpoint(url="http://127.0.0.1:9/v1", name="tiny", key_env=VARIABLE)
    with pytest.raises(EvaluationError, match=f"variable {VARIABLE} isn't set"):
        run(stage(subject, tasks=[task_file]), tmp_path, seed=1)
    monkeypatch.setenv(VARIABLE, f"{KEY}\u2026")
    with pytest.raises(EvaluationError, match="holds signs that no key has") as caught:
        run(stage(subject, tasks=[task_file]), tmp_path, seed=1)
    assert KEY not in str(caught.value)
    monkeypatch.setenv(VARIABLE, KEY)
    subject = Endpoint(url="http://127.0.0.1:9/v1", name=KEY, key_env=VARIABLE)
    with pytest.raises(
        EvaluationError, match="settings of an endpoint hold the key itself"
    ) as caught:
        run(stage(subject, tasks=[task_file]), tmp_path, seed=1)
    assert KEY not in str(caught.value)


def test_without_the_package_one_line_says_what_to_install(
    task_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    line = "tiny: an endpoint needs a package: pip install 'dualign[endpoint]'"
    assert main(["plan", str(recipe(tmp_path, task_file, "http://127.0.0.1:9/v1"))]) == 2
    assert line in capsys.readouterr().err
    model = "{url: 'http://127.0.0.1:9/v1', name: tiny}"
    for command in (["chat", model], ["eval", model, "--task", str(task_file), "--out", "x"]):
        monkeypatch.chdir(tmp_path)
        assert main(command) == 2
        assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("ftp://host", None),
        ("http://", "expected http://HOST"),
        ("http://host/v1/chat/completions", "expected the base address, as http://host/v1"),
        ("{url: http://host/v1, mode_switch: maybe}", "expected one of enable_thinking"),
        ("{url: http://host/v1, concurrency: 0}", "concurrency: expected 1 or more"),
        ("{url: http://host/v1, price_in: 1}", "give both"),
        ("{url: http://host/v1, max_cost: 1}", "needs price_in"),
        ("{url: http://host/v1, body: {day: 2026-01-01}}", "body: expected what JSON knows"),
        ("{url: http://host/v1, body: {max_tokens: 9}}", "body.max_tokens: the limit of an"),
        ("{url: http://host/v1, body: {max_tokens: null}}", "body.max_tokens: the limit of an"),
        ("{url: http://host/v1, body: {n: 4}}", "body.n: one answer is read of a reply"),
        ("{url: http://host/v1, body: {seed: 1}}", "leave it out, or null"),
        ("{url: http://host/v1, body: {temperature: 1}}", "body.temperature: the stage has"),
        (
            "{url: http://host/v1, mode_switch: {think: {body: {api_key: x}}, no_think: {}}}",
            "mode_switch.think.body.api_key: looks like a key",
        ),
        (
            "{url: http://host/v1, mode_switch: {think: {body: yes}, no_think: {}}}",
            "mode_switch.think.body: expected fields",
        ),
        ("{name: x}", "needs the key 'url'"),
        ("{url: http://host/v1", "MODEL: not YAML"),
    ],
)
def test_mistakes_are_said_with_their_key(value: str, words: str | None) -> None:
    if words is None:
        assert read_model(value, "MODEL") == value  # a path, or whatever it is
        return
    with pytest.raises(ConfigError, match=words):
        read_model(value, "MODEL")


def many(folder: Path, count: int) -> Path:
    """A task of `count` problems."""
    rows = [{"id": str(n), "question": f"{n}", "answer": f"{n}"} for n in range(count)]
    (folder / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = "name: many\nrows: many.jsonl\nprompt: '{question}'\nverifier: integer\n"
    (folder / "many.yaml").write_text(text)
    return folder / "many.yaml"


Label = tuple[str, bool]
"""A problem, and whether it was asked in think mode."""


def label(body: dict[str, Any]) -> Label:
    return body["messages"][-1]["content"], body["chat_template_kwargs"]["enable_thinking"]


def echo(body: dict[str, Any]) -> Reply:
    time.sleep(0.01)
    question, thinks = label(body)
    return 200, {}, chat_reply(question, **({"reasoning": "as asked"} if thinks else {}))


def answered(file: Path) -> set[Label]:
    """What the file holds an answer to, the last line apart if it was cut."""
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
    texts = [json.loads(line)["generated"] for line in lines]
    return {(text.split()[-1], "<think>" in text) for text in texts}


@pytest.mark.parametrize(
    ("kills", "problems"), [(2, 40), pytest.param(20, 600, marks=pytest.mark.slow)]
)
def test_after_kill_9_nothing_answered_is_asked_again_and_nothing_is_lost(
    tmp_path: Path, kills: int, problems: int
) -> None:
    out, concurrency = tmp_path / "out", 4
    with Proxy(echo).running() as server:
        model = f"{{url: '{server.address}', name: tiny, concurrency: {concurrency}}}"
        task = str(many(tmp_path, problems))
        command = ["eval", model, "--task", task, "--out", str(out), "--max-new-tokens", "8"]
        known = run_with_kills(
            command,
            server,
            kills=kills,
            requests=2 * problems,
            label=label,
            answered=lambda: answered(out / "samples.jsonl"),
        )
    assert len(known) == 2 * problems
    # Only what was on its way at a kill, or arrived but wasn't on the disk yet, is asked twice.
    assert known.total() - 2 * problems <= kills * 2 * concurrency
    rows = rows_of(out)
    assert len(rows) == 2 * problems
    assert all(row["answer"] == row["id"] for row in rows.values())


@pytest.mark.slow
def test_the_embedded_model_answers_through_its_own_gguf(
    embedded: Path, task_file: Path, tmp_path: Path
) -> None:
    """A model without modes: asked once for both, as in this process."""
    options = {"max_new_tokens": 16, "switch": Switch()}
    with llama_server(embedded_gguf(), slots=2) as address:
        plain = Endpoint(url=address, mode_switch="none", concurrency=2)
        there = run(stage(plain, tasks=[task_file], **options), tmp_path / "there", seed=1)
    here = run(stage(str(embedded), tasks=[task_file], **options), tmp_path / "here", seed=1)
    assert there.metrics["mode_switch"] is here.metrics["mode_switch"] is False
    assert there.metrics["endpoints"][plain.label]["answers"] == 4
    ours, theirs = rows_of(tmp_path / "here"), rows_of(tmp_path / "there")
    words = [set(ours[key]["answer"].split()) & set(theirs[key]["answer"].split()) for key in ours]
    assert all(words), "rounded weights say much of the same"


def test_each_request_has_its_own_limit_and_stops_where_its_answer_holds_a_stop() -> None:
    def talk(body: dict[str, Any]) -> Reply:
        reply = chat_reply("four Q: five", "length", reasoning_content="a Q: in a trace")
        return 200, {}, reply

    turns = [{"role": "user", "content": "2+2"}]
    samplings = [Sampling(max_new_tokens=8, stop=("Q:",)), Sampling(max_new_tokens=9)]
    with Proxy(talk).running() as server:
        responder = EndpointResponder(fast(server.address, concurrency=1), label="test")
        asked = [responder.prompt(turns, "think", None)] * 2
        made = {i: g for b in responder.generate(asked, samplings, [0, 0]) for i, g in b.items()}
    trace = "<think>\na Q: in a trace\n</think>\n\n"
    assert (made[0].text, made[0].finished) == (f"{trace}four ", True)
    assert (made[1].text, made[1].finished) == (f"{trace}four Q: five", False)
    assert [asked.body["max_tokens"] for asked in server.asked] == [8, 9]
    assert not any("stop" in asked.body for asked in server.asked)
