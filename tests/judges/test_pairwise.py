"""A pairwise judge behind a server on loopback: it decides by length, by place, or says nothing."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualign.errors import EvaluationError
from dualign.generation.config import Endpoint
from dualign.generation.samples import SampleFile
from dualign.judges.agreement import agreement
from dualign.judges.base import Comparison, JudgedQuestion
from dualign.judges.config import PairwiseConfig
from dualign.judges.table import open_judge
from tests.generation.servers import Proxy, Reply, chat_reply

PARTS = re.compile(r"(=== \w{12}) answer A\n(.*)\n\1 answer B\n(.*)\n\1 end", re.DOTALL)
FULL = (503, {}, b"{}")


def shown(body: dict[str, Any]) -> tuple[str, str]:
    match = PARTS.search(body["messages"][-1]["content"])
    assert match is not None
    return match[2], match[3]


def says(text: str) -> Reply:
    return 200, {}, chat_reply(text)


def prefers(better: Callable[[str, str], str]) -> Callable[[dict[str, Any]], Reply]:
    return lambda body: says(f'I looked at both.\n{{"better": "{better(*shown(body))}"}}')


def longer(a: str, b: str) -> str:
    return "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B"


def question(number: int, *answers: str, **keys: Any) -> JudgedQuestion:
    turn = {"role": "user", "content": f"Question {number}?"}
    return JudgedQuestion(key=f"q{number}", messages=(turn,), answers=answers, **keys)


def pairs(count: int) -> list[JudgedQuestion]:
    """The longer answer is the second one of each odd pair."""
    texts = [(f"{n} is a long answer", f"{n}") for n in range(count)]
    return [question(n, *(text[::-1] if n % 2 else text)) for n, text in enumerate(texts)]


def judge(proxy: Proxy, work: Path, **keys: Any) -> Any:
    settings = {"mode_switch": "none"} | keys.pop("endpoint", {})
    endpoint = Endpoint(url=proxy.address, name="tiny", **settings)
    file = SampleFile(work / "judgments.jsonl")
    return open_judge(PairwiseConfig(model=endpoint, **keys), file, label="pairs", seed=1)


def test_both_orders_of_a_pair_are_asked_and_have_to_agree(tmp_path: Path) -> None:
    with Proxy(prefers(longer)).running() as proxy:
        opened = judge(proxy, tmp_path)
        found = opened.compare([*pairs(20), question(20, "four", "five"), question(21, "x", "x")])
        bodies = [asked.body for asked in proxy.asked]
    assert [comparison.better for comparison in found] == [n % 2 for n in range(20)] + [None] * 2
    assert [comparison.reason for comparison in found[20:]] == ["tie", "tie"]
    assert sorted(map(shown, bodies)) == sorted(
        order
        for q in [*pairs(20), question(20, "four", "five")]
        for order in (q.answers, q.answers[::-1])
    )
    assert {body["temperature"] for body in bodies} == {0.0}
    record = opened.record()
    assert record["asked"] == record["endpoint"]["answers"] == 42
    assert record["comparisons"] == {
        "decided": 20,
        "tie": 1,
        "order": 0,
        "unreadable": 0,
        "failed": 0,
        "identical": 1,
    }
    assert record["consistent"]["share"] == 1.0
    assert (record["first_place"]["share"], record["first_place"]["n"]) == (0.5, 40)
    low, high = record["first_place"]["ci"]
    assert 0.3 < low < 0.5 < high < 0.7
    assert "both orders agree in 100 %" in opened.in_words()
    json.dumps(record)


def test_a_judge_that_decides_by_place_is_found_out_before_all_is_asked(tmp_path: Path) -> None:
    with Proxy(prefers(lambda a, b: "A")).running() as proxy:
        with pytest.raises(EvaluationError) as error:
            judge(proxy, tmp_path).compare(pairs(200))
        assert len(proxy.asked) == 32
        unbound = judge(proxy, tmp_path, min_consistent=0.0)
        assert {c.reason for c in unbound.compare(pairs(10))} == {"order"}
    assert "the first place in 100 % [89, 100] of 32" in str(error.value)
    assert "it decides by place" in str(error.value) and "min_consistent (0.5)" in str(error.value)
    assert unbound.record()["first_place"]["share"] == 1.0


def test_two_of_five_consistent_comparisons_pass_where_chance_explains_them(
    tmp_path: Path,
) -> None:
    def better(a: str, b: str) -> str:
        return longer(a, b) if min(a, b, key=len) in "01" else "A"

    with Proxy(prefers(better)).running() as proxy:
        found = judge(proxy, tmp_path).compare(pairs(5))
    assert [c.reason for c in found] == ["", "", "order", "order", "order"]


def test_a_tie_in_one_order_alone_is_a_disagreement(tmp_path: Path) -> None:
    with Proxy(prefers(lambda a, b: "A" if len(a) > len(b) else "tie")).running() as proxy:
        opened = judge(proxy, tmp_path, min_consistent=0.0)
        assert opened.compare(pairs(1)) == [Comparison(better=None, reason="order")]


UNREADABLE = [
    "A is better.",
    '{"better": "A"} is what I think.',
    '{"better": "answer A"}',
    '{"better": "A", "better": "B"}',
    '{"better": ["A"]}',
    '{"better": "A", "score": 3}',
    "{}",
]
READABLE = [
    '{"better": "A"}',
    'First {"better": "B"}, no:\n\n```json\n{\n  "better": "A"\n}\n```\n',
    '<think>\n{"better": "B"}\n</think>\n{"better": "A"}',
    'All {x} and "}" aside: {"better": "A"} \n',
    *['{"better": "A"}'] * 4,
]


def test_a_verdict_is_the_object_at_the_end_and_nothing_else(tmp_path: Path) -> None:
    texts = [*UNREADABLE, *READABLE]

    def writes(body: dict[str, Any]) -> Reply:
        a, b = shown(body)
        number = int(min(a, b, key=len))
        return says(texts[number] if len(a) > len(b) else '{"better": "B"}')

    questions = [question(n, f"{n} is long", f"{n}") for n in range(len(texts))]
    with Proxy(writes).running() as proxy:
        opened = judge(proxy, tmp_path)
        found = opened.compare(questions)
    unreadable = Comparison(better=None, reason="unreadable")
    assert found == [unreadable] * len(UNREADABLE) + [Comparison(better=0)] * len(READABLE)
    assert opened.record()["unreadable"] == len(UNREADABLE)


def test_a_judge_that_writes_garbage_is_refused_with_a_sample_of_it(tmp_path: Path) -> None:
    with Proxy(lambda body: says("Both are fine, aren't they?")).running() as proxy:
        with pytest.raises(EvaluationError) as error:
            judge(proxy, tmp_path).compare(pairs(50))
        assert len(proxy.asked) == 32
    assert "32 of 32 judgments can't be read" in str(error.value)
    assert "Both are fine, aren't they?" in str(error.value)


def test_judgments_that_the_limit_cuts_are_counted_and_named(tmp_path: Path) -> None:
    def cut(body: dict[str, Any]) -> Reply:
        return 200, {}, chat_reply('{"better": "A"}', finish="length")

    with (
        Proxy(cut).running() as proxy,
        pytest.raises(EvaluationError, match="raise max_new_tokens"),
    ):
        judge(proxy, tmp_path).compare(pairs(10))


def test_a_server_that_fails_a_third_of_its_requests_gives_the_same_comparisons(
    tmp_path: Path,
) -> None:
    fault = lambda n, body: FULL if n % 3 == 0 else None  # noqa: E731
    with Proxy(prefers(longer), fault=fault).running() as proxy:
        opened = judge(proxy, tmp_path, endpoint={"max_wait_seconds": 0.01})
        found = opened.compare(pairs(12))
    assert [comparison.better for comparison in found] == [n % 2 for n in range(12)]
    assert opened.record()["endpoint"]["failed_tries"]["503"] >= 12
    assert opened.record()["failed"] == 0


def test_a_request_that_stays_without_an_answer_drops_its_comparison(tmp_path: Path) -> None:
    fault = lambda n, body: FULL if "Question 1?" in str(body) else None  # noqa: E731
    keys = {"tries": 2, "max_wait_seconds": 0.01, "max_failed": 0.5}
    with Proxy(prefers(longer), fault=fault).running() as proxy:
        opened = judge(proxy, tmp_path, endpoint=keys)
        found = opened.compare(pairs(4))
    assert [comparison.reason for comparison in found] == ["", "failed", "", ""]
    assert opened.record()["failed"] == 2


def test_what_was_judged_before_is_not_asked_again(tmp_path: Path) -> None:
    with Proxy(prefers(longer)).running() as proxy:
        first = judge(proxy, tmp_path).compare(pairs(3))
        count = len(proxy.asked)
        again = judge(proxy, tmp_path)
        assert again.compare(pairs(4))[:3] == first
        assert len(proxy.asked) == count + 2
        assert judge(proxy, tmp_path, criteria="The polite one.").compare(pairs(3)) == first
        assert len(proxy.asked) == count + 2 + 6
    assert again.record()["endpoint"]["answered_before"] == 6


def test_a_judge_thinks_and_samples_as_its_settings_say(tmp_path: Path) -> None:
    def thinks(body: dict[str, Any]) -> Reply:
        verdict = f'{{"better": "{longer(*shown(body))}"}}'
        return 200, {}, chat_reply(verdict, reasoning_content='Perhaps {"better": "tie"}?')

    endpoint = {"mode_switch": "enable_thinking"}
    keys: dict[str, Any] = {"mode": "think", "temperature": 0.5, "max_new_tokens": 77}
    with Proxy(thinks).running() as proxy:
        assert judge(proxy, tmp_path, endpoint=endpoint, **keys).compare(pairs(1)) == [
            Comparison(better=0)
        ]
        bodies = [asked.body for asked in proxy.asked]
    assert all(body["chat_template_kwargs"] == {"enable_thinking": True} for body in bodies)
    assert {(body["temperature"], body["max_tokens"]) for body in bodies} == {(0.5, 77)}
    assert len({body["seed"] for body in bodies}) == 2


def test_of_several_answers_each_gets_its_wins_less_its_losses(tmp_path: Path) -> None:
    answers = ("four", "a", "seventeen letters", "nine")
    with Proxy(prefers(longer)).running() as proxy:
        (ranking,) = judge(proxy, tmp_path).score([question(0, *answers)])
        assert len(proxy.asked) == 4 * 3
    assert ranking.scores == (0.0, -3.0, 3.0, 0.0)
    assert ranking.dropped == {"tie": 1}


def test_an_answer_of_which_nothing_could_be_read_has_no_score(tmp_path: Path) -> None:
    def better(body: dict[str, Any]) -> Reply:
        a, b = shown(body)
        return says("?" if "odd" in a + b else f'{{"better": "{longer(a, b)}"}}')

    with Proxy(better).running() as proxy:
        (ranking,) = judge(proxy, tmp_path).score([question(0, "long one", "b", "odd")])
    assert ranking.scores == (1.0, -1.0, None)
    assert ranking.dropped == {"unreadable": 2}


def test_agreement_counts_decided_pairs_of_a_right_and_a_wrong_answer() -> None:
    comparisons = [Comparison(better=0)] * 3 + [
        Comparison(better=1),
        Comparison(better=None, reason="order"),
        Comparison(better=0),
    ]
    verdicts = [(True, False)] * 2 + [(False, True)] + [(False, True)] * 2 + [(True, True)]
    found = agreement(comparisons, verdicts)
    assert (found["n"], found["share"], found["undecided"]) == (4, 0.75, 1)
    assert found["ci"] == pytest.approx([0.3006, 0.9544], abs=1e-4)
