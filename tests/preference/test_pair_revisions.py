"""Minimal revision: a teacher mends the model's wrong answers."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualign.errors import DataError
from dualign.evaluation.preflight import issues
from dualign.generation.config import Endpoint
from dualign.preference.pair_revisions import read_revision, similarity
from dualign.preference.pairs import run
from dualign.preference.pairs_config import PairsStage, RevisionConfig
from tests.generation.servers import Proxy, Reply, chat_reply

SUMS = {"1+2": 3, "4+5": 9, "2+2": 4, "7+1": 8}
SENTENCE = "I add the two numbers one by one, and so I find that the sum is"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("task")
    rows = [{"id": q, "prompt": f"What is {q}?", "answer": str(right)} for q, right in SUMS.items()]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sums.yaml").write_text("name: sums\nrows: sums.jsonl\nverifier: integer\n")
    return str(folder / "sums.yaml")


def student(body: dict[str, Any]) -> Reply:
    """It is wrong by one, but for 7+1."""
    question = re.search(r"\d\+\d", body["messages"][-1]["content"])[0]
    number = SUMS[question] + (question != "7+1")
    thinks = body["chat_template_kwargs"]["enable_thinking"]
    trace = {"reasoning": f"{SENTENCE} {number}, so I say {number}"} if thinks else {}
    return 200, {}, chat_reply(f"{SENTENCE} {number}", **trace)


def mended(request: str) -> str:
    """What a good teacher writes: both parts with the right number, in the form that was asked for."""
    number = str(SUMS[re.search(r"<question>\nWhat is (.*)\?", request)[1]])
    parts = re.findall(r"<student_(\w+)>\n(.*?)\n</student_", request, re.DOTALL)
    return "\n".join(
        f"<revised_{name}>\n{re.sub(r'[0-9]+', number, text)}\n</revised_{name}>"
        for name, text in parts
    )


def revised(
    task: str, work: Path, write: Callable[[str], str] = mended, **keys: Any
) -> tuple[Any, list[dict[str, Any]], list[str]]:
    """Run a stage; returns its outcome, its pairs, and what the teacher was asked."""
    config = keys.pop("revise", {})
    asked: list[str] = []

    def teacher(body: dict[str, Any]) -> Reply:
        asked.append(body["messages"][-1]["content"])
        assert body["temperature"] == 0 and body["max_tokens"] == 1024
        return 200, {}, chat_reply(write(asked[-1]))

    with Proxy(student).running() as weak, Proxy(teacher).running() as strong:
        stage = PairsStage(
            name="pairs",
            model=Endpoint(url=weak.address, name="student"),
            revise=RevisionConfig(model=Endpoint(url=strong.address, name="teacher"), **config),
            tasks=(task,),
            samples=1,
            **keys,
        )
        outcome = run(stage, work, seed=1)
        answers = len(asked)
        run(stage, work, seed=1)
        assert len(asked) == answers, "what was revised isn't asked again"
    lines = (work / "pairs.jsonl").read_text().splitlines()
    return outcome, [json.loads(line) for line in lines], asked


def test_wrong_answers_stand_against_their_revisions_in_both_modes(
    task: str, tmp_path: Path
) -> None:
    outcome, pairs, asked = revised(task, tmp_path)
    assert len(pairs) == len(asked) == 6
    for pair in pairs:
        right = SUMS[pair["id"]]
        chosen, rejected = pair["chosen"][0], pair["rejected"][0]
        assert chosen["content"] == f"{SENTENCE} {right}"
        assert rejected["content"] == f"{SENTENCE} {right + 1}"
        if pair["mode"] == "think":
            assert chosen["reasoning_content"] == f"{SENTENCE} {right}, so I say {right}"
            assert rejected["reasoning_content"] == f"{SENTENCE} {right + 1}, so I say {right + 1}"
        else:
            assert "reasoning_content" not in chosen
    assert outcome.rows["dropped"] == {"all_right": 2} and outcome.rows["in"] == 8
    revisions = outcome.metrics["revisions"]
    assert (revisions["asked"], revisions["kept"], revisions["dropped"]) == (6, 6, {})
    assert 0.9 < revisions["similarity"] < 1
    assert set(outcome.metrics["endpoints"]) == {"student", "teacher"}
    assert all("right_answer" not in text for text in asked)
    assert sum("<revised_reasoning>" in text for text in asked) == 3


def test_the_reviser_sees_the_right_answer_and_the_instruction_if_the_recipe_says_so(
    task: str, tmp_path: Path
) -> None:
    config = {"reference": True, "instruction": "Make it rhyme."}
    _, _, asked = revised(task, tmp_path, revise=config, modes=("no_think",))
    about_first = next(text for text in asked if "1+2" in text)
    assert "<right_answer>\n3\n</right_answer>" in about_first
    assert all("Make it rhyme." in text for text in asked)


def test_a_right_answer_that_is_a_list_is_shown_too(tmp_path: Path) -> None:
    row = {"id": "1+2", "prompt": "What is 1+2?", "words": ["three", "3"]}
    (tmp_path / "sums.jsonl").write_text(json.dumps(row) + "\n")
    task = (
        "name: sums\nrows: sums.jsonl\nanswer: '{words}'\nverifier: {kind: contains, need: any}\n"
    )
    (tmp_path / "sums.yaml").write_text(task)
    (tmp_path / "work").mkdir()
    _, _, (text,) = revised(
        str(tmp_path / "sums.yaml"),
        tmp_path / "work",
        revise={"reference": True},
        modes=("no_think",),
    )
    assert '<right_answer>\n["three", "3"]\n</right_answer>' in text


def test_a_checkpoint_that_revises_counts_the_tokens_of_both_sides(
    task: str, learnt: Path, tmp_path: Path
) -> None:
    with Proxy(student).running() as weak:
        stage = PairsStage(
            name="pairs",
            model=Endpoint(url=weak.address, name="student"),
            revise=RevisionConfig(model=str(learnt), max_new_tokens=4),
            tasks=(task,),
            modes=("no_think",),
            samples=1,
        )
        with pytest.raises(DataError, match="no pair"):
            run(stage, tmp_path, seed=1)
        file = tmp_path / "generations.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines[4:]:  # what the tiny model can't write
            line["generated"] = f"<revised_answer>{SENTENCE} 3</revised_answer>"
            line["finished"] = True
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        lengths = run(stage, tmp_path, seed=1).metrics["lengths"]
    assert lengths["unit"] == "tokens of learnt"
    figures = lengths["modes"]["no_think"]
    assert (figures["pairs"], figures["correlation"]) == (1, 0)
    assert figures["chosen"] == figures["rejected"] > 20


def test_revisions_that_make_no_pair_are_counted_by_their_reason(task: str, tmp_path: Path) -> None:
    def write(request: str) -> str:
        good = mended(request)
        if "1+2" in request:
            return good
        if "4+5" in request:
            return good.replace("9", "10")  # what the student said
        return "Here it is: " + good

    outcome, pairs, _ = revised(task, tmp_path, write, modes=("no_think",))
    assert [pair["id"] for pair in pairs] == ["1+2"]
    assert outcome.rows["dropped"] == {"unchanged": 1, "unreadable": 1, "all_right": 1}
    assert outcome.metrics["revisions"]["dropped"] == {"unchanged": 1, "unreadable": 1}


def test_revisions_that_are_wrong_or_long_or_other_texts_are_dropped(
    task: str, tmp_path: Path
) -> None:
    def write(request: str) -> str:
        number, answer = ("3", "three: 3") if "1+2" in request else ("9", mended(request)[17:-18])
        if "2+2" in request:
            return mended(request).replace("4", "5 or 6")
        more = f"Well. {answer} " * 3 if number == "9" else answer
        return f"<revised_answer>{more}</revised_answer>"

    with pytest.raises(DataError, match=r"no pair came of 4 prompts") as error:
        revised(task, tmp_path, write, modes=("no_think",), revise={"min_similarity": 0.4})
    counts = {"rewritten": 1, "too_long": 1, "still_wrong": 1, "all_right": 1}
    assert str(counts["rewritten"]) and all(f"'{name}': 1" in str(error.value) for name in counts)


@pytest.mark.parametrize(
    "text",
    [
        "4",
        "<revised_answer></revised_answer>",
        "<revised_answer>4</revised_answer> I hope this helps.",
        "<revised_answer>4</revised_answer><revised_answer>4</revised_answer>",
        "<revised_reasoning>so</revised_reasoning><revised_answer>4</revised_answer>",
        "<revised_answer>4 </think></revised_answer>",
        "<revised_answer>4 <revised_answer></revised_answer>",
    ],
)
def test_only_the_form_that_was_asked_for_is_read(text: str) -> None:
    assert read_revision(text, with_trace=False) is None
    reply = read_revision("\n<revised_answer>\n4\n</revised_answer>\n", with_trace=False)
    assert reply is not None and (reply.thinking, reply.answer) == (None, "4")


def test_similarity_is_the_share_of_common_words() -> None:
    assert similarity(("a b", "c d"), ("a b", "c d")) == 1
    assert similarity((None, "a b c d"), (None, "a b c e")) == 0.75
    assert similarity((None, "4"), (None, "3")) == 0


def test_a_reviser_beside_another_source_of_chosen_answers_is_refused() -> None:
    revise = RevisionConfig(model="m", min_similarity=1, max_growth=0, instruction=" ")
    keys = [key for key, _ in revise.problems()]
    assert keys == ["instruction", "min_similarity", "max_growth"]
    stage = PairsStage(
        name="p", model="m", rejected_model="w", revise=revise, choose="best_worst", tasks=("t",)
    )
    assert [key for key, _ in stage.problems()] == ["revise", "choose"]


def test_plan_and_preflight_count_the_reviser(
    task: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    teacher = Endpoint(
        url="http://127.0.0.1:9/v1", name="big", key_env="TEACHER_KEY", price_in=1, price_out=1
    )
    stage = PairsStage(
        name="p",
        model="m",
        revise=RevisionConfig(model=teacher, max_new_tokens=100),
        tasks=(task,),
        max_new_tokens=60,
        pairs_per_prompt=2,
    )
    words = stage.in_words()
    assert "revisions of big at http://127.0.0.1:9/v1: 16 requests" in words
    assert "at most 1,600 of answers" in words
    assert [key for key, _ in issues(stage)] == ["revise.model"]
    monkeypatch.setenv("TEACHER_KEY", "not-a-key")
    assert not issues(stage) and "revise.model: no server can be reached" in caplog.text
