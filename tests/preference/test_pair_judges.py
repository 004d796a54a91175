"""A judge sorts the samples of a pairs stage, where no verifier can or beside one."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualign.data.config import SourceConfig
from dualign.errors import CheckpointError, DataError
from dualign.evaluation.preflight import issues
from dualign.generation.config import Endpoint
from dualign.judges.config import PairwiseConfig, RewardModelConfig, RubricConfig
from dualign.preference.pairs import run
from dualign.preference.pairs_config import AskedRows, PairsStage, RevisionConfig
from dualign.verifiers.regex import RegexVerifier
from tests.generation.servers import Proxy, Reply, chat_reply
from tests.judges.test_pairwise import longer, prefers, says


def in_turn(*answers: str) -> Callable[[dict[str, Any]], Reply]:
    """A server that gives each question these answers, one after the other."""
    asked, lock = Counter[str](), threading.Lock()

    def answer(body: dict[str, Any]) -> Reply:
        question = body["messages"][-1]["content"]
        with lock:
            number = asked[question]
            asked[question] += 1
        text = answers[number % len(answers)]
        return 200, {}, chat_reply(text.format(q=re.sub(r"\D", "", question)))

    return answer


def score_of(body: dict[str, Any]) -> Reply:
    """A judge that takes the points that an answer claims for its score."""
    answer = body["messages"][-1]["content"].rpartition(" answer\n")[2]
    points = re.findall(r"(\d+) points", answer)[0]
    return says(f'{{"score": {points}}}')


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = [{"prompt": f"Write about {n}.", "completion": f"{n} it is."} for n in (1, 2, 3)]
    file = tmp_path / "essays.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def made(
    data: Path,
    servers: dict[str, Callable[[dict[str, Any]], Reply]],
    judge: type,
    rows: dict[str, Any] | None = None,
    **keys: Any,
) -> tuple[Any, list[dict[str, Any]], list[str]]:
    """Run a stage whose models are these servers; returns outcome, pairs, and what the judge was asked."""
    with Proxy(servers["model"]).running() as model, Proxy(servers["judge"]).running() as proxy:
        endpoint = Endpoint(url=proxy.address, name="judge", mode_switch="none")
        asked = AskedRows(sources=(SourceConfig(path=str(data)),), **(rows or {}))
        stage = PairsStage(
            name="pairs",
            model=Endpoint(url=model.address, name="tiny"),
            data=asked,
            judge=judge(model=endpoint),
            modes=("no_think",),
            **keys,
        )
        assert not stage.problems()
        outcome = run(stage, data.parent, seed=1)
        count = len(proxy.asked)
        run(stage, data.parent, seed=1)
        assert len(proxy.asked) == count, "what was judged isn't asked again"
    lines = (data.parent / "pairs.jsonl").read_text().splitlines()
    texts = [request.body["messages"][-1]["content"] for request in proxy.asked]
    return outcome, [json.loads(line) for line in lines], texts


def test_the_best_sample_stands_against_the_worst_by_a_judges_score(data: Path) -> None:
    answers = [f"{n} points for {{q}}" for n in (3, 9, 1, 5)]
    servers = {"model": in_turn(*answers), "judge": score_of}
    outcome, pairs, asked = made(data, servers, RubricConfig, choose="best_worst")
    sides = [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs]
    assert sides == [(f"9 points for {n}", f"1 points for {n}") for n in (1, 2, 3)]
    assert len(asked) == 12 and "2 it is." in "".join(asked), "the judge sees the row's own answer"
    record = outcome.metrics["judge"]
    assert record["asked"] == 12 and "agreement" not in record


def test_ties_are_dropped_and_counted(data: Path) -> None:
    servers = {"model": in_turn("5 points", "5 points each"), "judge": score_of}
    with pytest.raises(DataError, match=r"no pair came of 3 prompts: \{'tie': 3\}"):
        made(data, servers, RubricConfig, samples=2)


def test_a_judge_that_contradicts_the_verifier_makes_no_pair_and_is_found_out(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every second answer is right, and the judge likes the others."""
    servers = {"model": in_turn("{q}, 5 points", "no, 9 points"), "judge": score_of}
    data.write_text(
        "".join(
            json.dumps({"prompt": f"Write {n}", "completion": f"{n}", "start": f"^{n},"}) + "\n"
            for n in (1, 2, 3)
        )
    )
    rows = {"verifier": RegexVerifier(), "expected": "{start}"}
    with pytest.raises(DataError, match="'verifier_disagrees': 3"):
        made(data, servers, RubricConfig, rows, samples=2)
    assert "it agrees with the verifier in 0 % [0, 56] of 3" in capsys.readouterr().out


def test_of_a_strong_and_a_weak_model_the_pairs_that_the_judge_finds_right_are_kept(
    data: Path,
) -> None:
    def weak(body: dict[str, Any]) -> Reply:
        text = "much, much longer than that" if "2" in body["messages"][-1]["content"] else "short"
        return 200, {}, chat_reply(text)

    servers = {"model": in_turn("a middling answer"), "judge": prefers(longer)}
    with Proxy(weak).running() as proxy:
        model = Endpoint(url=proxy.address, name="weak")
        outcome, pairs, _ = made(data, servers, PairwiseConfig, rejected_model=model, samples=1)
    assert [pair["prompt"][0]["content"] for pair in pairs] == ["Write about 1.", "Write about 3."]
    assert outcome.rows["dropped"] == {"judge_disagrees": 1}


def test_a_revision_has_to_be_better_by_the_judge(data: Path) -> None:
    def teacher(body: dict[str, Any]) -> Reply:
        """It makes the answer about 2 worse."""
        request = body["messages"][-1]["content"]
        points = 2 if "about 2" in request else 8
        return 200, {}, chat_reply(f"<revised_answer>I get {points} points</revised_answer>")

    servers = {"model": in_turn("I get 5 points"), "judge": score_of}
    with Proxy(teacher).running() as proxy:
        revise = RevisionConfig(model=Endpoint(url=proxy.address, name="teacher"))
        outcome, pairs, _ = made(data, servers, RubricConfig, revise=revise, samples=1)
    assert [pair["chosen"][0]["content"] for pair in pairs] == ["I get 8 points"] * 2
    assert outcome.rows["dropped"] == {"judge_disagrees": 1}


def test_a_judge_that_cannot_be_opened_costs_no_answers(data: Path, tmp_path: Path) -> None:
    stage = PairsStage(
        name="p",
        model=Endpoint(url="http://127.0.0.1:9/v1", name="m"),
        data=AskedRows(sources=(SourceConfig(path=str(data)),)),
        judge=RewardModelConfig(model=str(tmp_path)),
    )
    with pytest.raises(CheckpointError, match="json"):
        run(stage, tmp_path, seed=1)
    assert not (tmp_path / "generations.jsonl").exists()


def test_plan_and_preflight_count_the_judge(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    judge = Endpoint(
        url="http://127.0.0.1:9/v1", name="big", key_env="JUDGE_KEY", price_in=1, price_out=1
    )
    asked = AskedRows(sources=(SourceConfig(path=str(data)),))
    stage = PairsStage(name="p", model="m", data=asked, judge=PairwiseConfig(model=judge))
    assert not stage.problems()
    assert "judge big at http://127.0.0.1:9/v1: 72 requests" in stage.in_words()
    assert [key for key, _ in issues(stage)] == ["judge.model"]
