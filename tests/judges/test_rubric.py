"""A rubric judge behind a server on loopback."""

import json
from pathlib import Path
from typing import Any

import pytest

from dualign.errors import EvaluationError
from dualign.generation.config import Endpoint
from dualign.generation.samples import SampleFile
from dualign.judges.base import Comparison
from dualign.judges.config import RubricConfig
from dualign.judges.table import open_judge
from tests.generation.servers import Proxy
from tests.judges.test_pairwise import question, says


def scores(body: dict[str, Any]) -> Any:
    """The number that the answer holds."""
    text = body["messages"][-1]["content"]
    number = text.rpartition("worth ")[2].partition("\n")[0]
    return says(f'Hm.\n{{"score": {number}}}')


def judge(proxy: Proxy, work: Path, **keys: Any) -> Any:
    endpoint = Endpoint(url=proxy.address, name="tiny", mode_switch="none")
    file = SampleFile(work / "judgments.jsonl")
    return open_judge(RubricConfig(model=endpoint, **keys), file, label="pairs", seed=1)


def test_each_answer_gets_its_score_and_what_is_off_the_scale_gets_none(tmp_path: Path) -> None:
    questions = [
        question(0, "worth 7", "worth 2.5", "worth 11"),
        question(1, "worth true", 'worth "7"', "worth NaN", f"worth 1{'0' * 400}", "worth 10"),
    ]
    with Proxy(scores).running() as proxy:
        opened = judge(proxy, tmp_path, rubric="How much is it worth?", scale=(0.0, 10.0))
        first, second = opened.score(questions)
        assert len(proxy.asked) == 8
        asked = proxy.asked[0].body["messages"][-1]["content"]
    assert "How much is it worth?" in asked and "from 0 (worst) to 10 (best)" in asked
    assert first.scores == (7.0, 2.5, None)
    assert second.scores == (None, None, None, None, 10.0)
    assert second.dropped == {"unreadable": 4}
    record = opened.record()
    assert (record["asked"], record["unreadable"], record["mean_score"]) == (8, 5, 6.5)
    assert record["scores"] == {"2.5": 1, "7": 1, "10": 1}
    assert "unreadable 5" in opened.in_words()
    json.dumps(record)


def test_the_higher_score_wins_and_equal_scores_are_a_tie(tmp_path: Path) -> None:
    questions = [
        question(n, f"worth {a}", f"worth {b}")
        for n, (a, b) in enumerate([(3, 4), (4, 3), (5, 5), (3, 99)])
    ]
    with Proxy(scores).running() as proxy:
        found = judge(proxy, tmp_path).compare(questions)
    assert [c.better for c in found] == [1, 0, None, None]
    assert [c.reason for c in found] == ["", "", "tie", "unreadable"]
    assert found[2] == Comparison(better=None, reason="tie")


def test_a_judge_without_scores_is_refused(tmp_path: Path) -> None:
    with (
        Proxy(lambda body: says("Good!")).running() as proxy,
        pytest.raises(EvaluationError, match="can't be read, such as 'Good!'"),
    ):
        judge(proxy, tmp_path).score([question(0, *(f"answer {n}" for n in range(6)))])
