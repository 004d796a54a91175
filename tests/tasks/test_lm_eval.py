"""Tasks of lm-evaluation-harness beside lm-eval's own model: the same prompts, responses and metrics."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualign.errors import EvaluationError
from dualign.evaluation import evaluate
from dualign.evaluation.config import EvalConfig, EvalStage
from dualign.evaluation.following import respond
from dualign.evaluation.preflight import task_problems
from dualign.evaluation.requests import build_requests
from dualign.fingerprint import Digests, file_digests, fingerprint
from dualign.generation import responders
from dualign.generation.config import Endpoint
from dualign.generation.responders import open_responder
from dualign.generation.samples import AnswerRecord, SampleFile
from dualign.models.loading import open_model
from dualign.recipe import load_recipe
from dualign.tasks.lm_eval import expanded, load, names
from dualign.tasks.table import files_of, listing, load_questions
from tests.chat_model import LEARNT

DATA = 'dataset_path: json\ndataset_kwargs: {data_files: {test: "ROWS"}}\ntest_split: test\n'
QUESTION = 'doc_to_text: "What is {{sum}}?"\ndoc_to_target: "{{right}}"\n'
WRITTEN = f"""
{DATA}{QUESTION}
output_type: generate_until
fewshot_split: test
generation_kwargs: {{until: ["Q:", "8"], max_gen_toks: 12}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
filter_list:
  - {{name: digits, filter: [{{function: regex, regex_pattern: "([0-9])"}}, {{function: take_first}}]}}
  - {{name: whole, filter: [{{function: take_first}}]}}
metadata: {{version: 3}}
"""
CHOSEN = f"""
{DATA}{QUESTION}
output_type: multiple_choice
doc_to_choice: ["0", "1", "2", "3", "4", "five", "6", "7", "8", "9"]
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
  - {{metric: brier_score, aggregation: brier_score, higher_is_better: false}}
metadata: {{version: 1}}
"""
READ = f"""
{DATA}
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
metadata: {{version: 2}}
"""
TRAP = f"""
{DATA}{QUESTION}
output_type: generate_until
generation_kwargs: {{until: ["t"], max_gen_toks: 12}}
process_results: !function trap.process_results
metric_list: [{{metric: without_a, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 0}}
"""
BEGUN = f"""
{DATA}{QUESTION}
output_type: generate_until
gen_prefix: "It is "
generation_kwargs: {{until: [], max_gen_toks: 4}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
TWO_PROMPTS = f"""
{DATA}
output_type: multiple_choice
doc_to_text: "{{{{1 if right == '4' else 0}}}}"
doc_to_choice: '["What is {{{{sum}}}}?", "Which is 2+2?"]'
doc_to_target: "It is {{{{right}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
MUTUAL = f"""
{DATA}{QUESTION}
output_type: multiple_choice
doc_to_choice: ["1", "3", "9", "4", "7", "8"]
doc_to_target: "{{{{2 if right == '9' else 1}}}}"
metric_list: [{{metric: acc_mutual_info, aggregation: mean, higher_is_better: true}}]
"""
REPEATED = f"""
{DATA}{QUESTION}
output_type: generate_until
repeats: 3
generation_kwargs: {{until: [], max_gen_toks: 5}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
filter_list:
  - {{name: most, filter: [{{function: majority_vote}}, {{function: take_first}}]}}
"""
# Every trace has an "o" or "e" in it, and no answer has: as IFEval's forbidden words.
TRAP_CODE = """
def process_results(doc, results):
    return {"without_a": not set("oe") & set(results[0])}
"""
TASKS = {
    "plain": f"{WRITTEN}num_fewshot: 0",
    "shots": f"{WRITTEN}num_fewshot: 2",
    "chosen": CHOSEN,
    "read": READ,
    "trap": TRAP,
    "begun": BEGUN,
    "two_prompts": TWO_PROMPTS,
    "mutual": MUTUAL,
    "repeated": REPEATED,
}


class Found(NamedTuple):
    """What an evaluation wrote."""

    metrics: Any
    samples: dict[tuple[str, str, str], Any]
    folder: Path


def task_file(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    rows = str(folder / "sums.json")
    path.write_text(f"task: {name}\n{text.replace('ROWS', rows)}\n", encoding="utf-8")
    return path


def evaluated(model: Path, tasks: list[Path], folder: Path, **options: Any) -> Found:
    names = tuple(f"lm_eval:{task}" for task in tasks)
    options = {"max_new_tokens": 40, "batch_tokens": 900} | options
    stage = EvalStage(name="eval", models=(str(model),), tasks=names, **options)
    metrics = evaluate.run(stage, folder, seed=1).metrics
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = {(row["task"], row["mode"], row["id"]): row for row in map(json.loads, lines)}
    return Found(metrics, samples, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    lines = [
        {"sum": question, "right": right, "text": f"{thought} so {right}. " * 20}
        for question, (thought, right, _) in LEARNT.items()
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "sums.json").write_text(text, encoding="utf-8")
    (folder / "trap.py").write_text(TRAP_CODE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tasks(folder: Path) -> list[Path]:
    return [task_file(folder, name, text) for name, text in TASKS.items()]


@pytest.fixture(scope="module")
def found(learnt: Path, tasks: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Found:
    return evaluated(learnt, tasks, tmp_path_factory.mktemp("found"))


@pytest.fixture(scope="module")
def theirs(learnt: Path, tasks: list[Path]) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer = AutoTokenizer.from_pretrained(learnt)
    weights = AutoModelForCausalLM.from_pretrained(learnt)
    lm = HFLM(pretrained=weights, tokenizer=tokenizer, enable_thinking=False, batch_size=4)
    return simple_evaluate(
        lm,
        tasks=[str(task) for task in tasks],
        task_manager=TaskManager(include_defaults=False),
        apply_chat_template=True,
        bootstrap_iters=1,
    )


def test_no_think_metrics_are_those_of_lm_eval_with_its_own_model(
    found: Found, theirs: Any
) -> None:
    for name, figures in theirs["results"].items():
        cell = found.metrics["tasks"][name]["no_think"]["metrics"]
        assert set(cell) == {key for key in figures if "," in key and "_stderr" not in key}
        for key, figure in cell.items():
            metric, _, kind = key.rpartition(",")
            assert figure["value"] == pytest.approx(figures[key], rel=1e-6), key
            if figure["stderr"] is not None:
                assert figure["stderr"] == figures[f"{metric}_stderr,{kind}"]
    think = {name: cell["think"]["accuracy"] for name, cell in found.metrics["tasks"].items()}
    assert think == {
        **{"plain": 0.75, "shots": 0.0, "chosen": 1.0, "read": None, "trap": 1.0},
        **{"begun": 0.0, "two_prompts": 0.5, "mutual": 0.5, "repeated": 1.0},
    }


def test_no_think_prompts_and_responses_are_those_of_lm_eval(found: Found, theirs: Any) -> None:
    seen = set()
    for name, lines in theirs["samples"].items():
        for line in lines:
            mine = found.samples[name, "no_think", str(line["doc_id"])]
            seen.add(name)
            if name != "read":
                assert mine["rendered"] == line["arguments"][0][0]
            if isinstance(line["resps"][0][0], str):
                assert [mine["generated"]] * len(line["resps"][0]) == line["resps"][0]
                continue
            pairs = mine["more"][0]["likelihoods"]
            for [response], (value, greedy) in zip(line["resps"], pairs, strict=True):
                if name == "read":
                    assert value == pytest.approx(response, rel=1e-6)
                else:
                    assert (pytest.approx(value, abs=1e-4), greedy) == response
    assert seen == set(TASKS)


def test_filters_see_the_answer_and_never_the_trace(found: Found) -> None:
    for question in range(4):
        thinking = found.samples["trap", "think", str(question)]
        assert set("oe") & set(thinking["thinking"])
        assert thinking["correct"] and thinking["scores"] == {"without_a,none": True}
    # "t" ends an answer, and is in the traces "one and two" and "two twice is".
    assert found.samples["trap", "think", "0"]["thinking"] == "one and two"
    assert found.samples["trap", "think", "2"]["answer"] == "4"


def test_texts_are_scored_after_the_trace_in_think_mode(found: Found) -> None:
    rows = [found.samples["chosen", "think", str(number)] for number in range(4)]
    for row, (thought, right, _) in zip(rows, LEARNT.values(), strict=True):
        assert (row["thinking"], row["answer"], row["correct"]) == (thought, right, True)
        best = max(row["more"][0]["likelihoods"])
        assert best[0] > -0.1 and best[1]
    assert found.metrics["tasks"]["chosen"]["no_think"]["accuracy"] == 0.25
    assert found.samples["read", "think", "0"]["generated"] == ""


def test_a_given_start_of_an_answer_follows_the_trace(found: Found) -> None:
    for number, (thought, *_) in enumerate(LEARNT.values()):
        quick, row = (found.samples["begun", mode, str(number)] for mode in ("no_think", "think"))
        assert quick["rendered"].endswith("</think>\nIt is")
        assert (row["thinking"], row["rendered"][-8:]) == (thought, "<think>\n")
        ending = row["more"][0]
        assert row["answer"] == ending["generated"].strip() and not ending["finished"]


def test_texts_with_prompts_of_their_own_follow_a_trace_of_each(found: Found) -> None:
    row = found.samples["two_prompts", "think", "0"]
    first, second, scores = row["more"][-2]["generated"], row["generated"], row["more"][-1]
    assert second == "one and two\n</think>\n\n3" and "</think>" in first
    assert len(scores["likelihoods"]) == 2


def test_traces_are_closed_at_budgets_before_texts_repeats_and_begun_answers(
    learnt: Path, tasks: list[Path], found: Found, tmp_path: Path
) -> None:
    wanted = ("chosen", "begun", "two_prompts", "repeated", "read")
    limits = {"begun": 4, "repeated": 5}  # of the tasks, after the trace
    only = [task for task in tasks if task.stem in wanted]
    cut = evaluated(learnt, only, tmp_path, budgets=(4, 300))
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row.get("budget") == 4]
    names = [row["task"] for row in rows]
    assert {name: names.count(name) for name in wanted} == {
        name: 0 if name == "read" else 4 for name in wanted
    }
    for row in rows:
        if row["task"] != "two_prompts":
            thought = LEARNT[list(LEARNT)[int(row["id"])]][0]
            assert row["thinking"] == thought[:4].strip() and row["closed_by_budget"]
    assert all(row["answer_tokens"] <= limits.get(row["task"], 40) for row in rows)
    begun = next(row for row in rows if row["task"] == "begun")
    assert begun["answer"] == begun["more"][-1]["generated"].strip()
    other = next(row for row in rows if row["task"] == "two_prompts")["more"]
    assert other[0]["generated"].startswith("two \n</think>")
    for name in wanted:
        think = cut.metrics["tasks"][name]["think"]
        assert think["accuracy"] == found.metrics["tasks"][name]["think"]["accuracy"]
        if name == "read":
            assert "budgets" not in think
        else:
            assert think["budgets"][1]["accuracy"] == think["accuracy"]


def test_versions_are_recorded(found: Found, learnt: Path, folder: Path) -> None:
    (task,) = load(str(folder / "shots.yaml"))
    entry = evaluate.task_source(task, 4)
    assert (entry["harness"], entry["task_version"], entry["num_fewshot"]) == ("lm-eval", 3, 2)
    assert entry["version"].startswith("0.4") and len(entry["sha256"]) == 64
    assert entry["dataset"] == {"path": "json", "config": None, "split": "test"}


def test_what_was_written_and_scored_is_not_asked_again(
    found: Found, learnt: Path, tasks: list[Path], tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "samples.jsonl").write_bytes((found.folder / "samples.jsonl").read_bytes())

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("asked again")

    monkeypatch.setattr(responders, "generate_batches", refuse)
    monkeypatch.setattr(responders, "likelihoods", refuse)
    evaluated(learnt, tasks, tmp_path)
    for name in ("samples.jsonl", "metrics.json"):
        assert (tmp_path / name).read_bytes() == (found.folder / name).read_bytes()


def test_a_cut_trace_is_wrong_even_where_no_answer_would_be_right(
    learnt: Path, folder: Path, tmp_path: Path
) -> None:
    trap = task_file(folder, "cut", TRAP.replace("max_gen_toks: 12", "max_gen_toks: 3"))
    found = evaluated(learnt, [trap], tmp_path, max_new_tokens=3)
    cells = found.metrics["tasks"]["cut"]
    assert cells["think"]["cut_in_think_rate"] == 1.0
    assert cells["think"]["accuracy"] == 0.0
    assert cells["think"]["metrics"]["without_a,none"]["value"] == 0.0
    assert cells["no_think"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{TRAP}unsafe_code: true", "runs code that a model wrote"),
        (TRAP.replace("ROWS", "nowhere/ROWS"), "its data can't be had here"),
        (TRAP.replace("trap.process_results", "trap.missing"), "lm-eval can't load it"),
        (f"{TRAP}doc_to_image: [sum]", "asks about pictures"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(folder: Path, text: str, message: str) -> None:
    path = task_file(folder, "refused", text)
    with pytest.raises(EvaluationError, match=message) as caught:
        load_questions([f"lm_eval:{path}"])
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"lm_eval:.*none\.yaml: no such file"):
        load(str(tmp_path / "none.yaml"))


def test_a_file_that_is_no_text_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "bytes.yaml"
    path.write_bytes(b"task: \xff\xfe\n")
    assert files_of(f"lm_eval:{path}") == [path]
    with pytest.raises(EvaluationError, match=r"lm_eval:.*bytes\.yaml: "):
        load(str(path))


def test_a_recipe_names_files_from_its_folder_and_depends_on_what_they_name(
    folder: Path, tmp_path: Path
) -> None:
    task_file(folder, "hashed", TRAP)
    recipe = folder / "recipe.yaml"
    stage = {
        "name": "eval",
        "kind": "eval",
        "models": ["none/none"],
        "tasks": ["lm_eval:hashed.yaml"],
    }
    recipe.write_text(json.dumps({"name": "one", "output_dir": str(tmp_path), "stages": [stage]}))
    (entry,) = load_recipe(recipe, ()).stages
    assert entry.config.tasks == (f"lm_eval:{folder / 'hashed.yaml'}",)
    before = fingerprint(entry, {}, Digests())
    names = [name for name, _ in file_digests({"tasks": entry.config.tasks}, Digests())]
    assert {name.rpartition(":")[2] for name in names} == {"hashed.yaml", "sums.json", "trap.py"}
    (folder / "trap.py").write_text(f"{TRAP_CODE}\n", encoding="utf-8")
    assert fingerprint(entry, {}, Digests()) != before


@pytest.mark.slow
def test_names_are_listed_by_a_part_or_a_pattern() -> None:
    assert {("ifeval", "task"), ("mmlu", "group"), ("math_word_problems", "tag")} <= set(names())
    assert "lm_eval:gsm8k  task" in list(listing("GSM8K"))
    assert list(listing("ifeval")) != list(listing("ifeva?"))
    with pytest.raises(EvaluationError, match=r"no such task \(did you mean 'ifeval'"):
        load("ifevall")


def test_several_answers_vote_by_the_task_s_filter_and_are_clusters(
    learnt: Path, tasks: list[Path], tmp_path: Path
) -> None:
    warm = {"samples": 2, "temperature": 2.0}
    found = evaluated(learnt, [tasks[0], tasks[2]], tmp_path, **warm)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").open(encoding="utf-8")]
    written = [line for line in lines if line["task"] == "plain"]
    assert len(written) == 2 * 2 * len(LEARNT)
    digits = [re.search("[0-9]", line["answer"]) for line in written]
    assert [line["vote"] for line in written] == [found and found[0] for found in digits]
    cell = found.metrics["tasks"]["plain"]["think"]
    figure = cell["metrics"]["exact_match,digits"]
    assert (figure["value"], figure["ci"]) == (cell["accuracy"], cell["accuracy_ci"])
    # Scores of texts are the same each time: once without a trace, twice after two traces.
    counts = {
        mode: len([x for x in lines if (x["task"], x["mode"]) == ("chosen", mode)])
        for mode in ("think", "no_think")
    }
    assert counts == {"think": 2 * len(LEARNT), "no_think": len(LEARNT)}
    assert "samples" not in found.metrics["tasks"]["chosen"]["no_think"]


def test_a_task_without_a_share_has_no_change(
    learnt: Path, tasks: list[Path], tmp_path: Path
) -> None:
    names = tuple(f"lm_eval:{task}" for task in (tasks[0], tasks[3]))
    copy = shutil.copytree(learnt, tmp_path / "copy")
    stage = EvalStage(
        name="eval", models=(str(copy), str(learnt)), tasks=names, max_new_tokens=40, rows=1
    )
    changes = evaluate.run(stage, tmp_path / "out", seed=1).metrics["changes"]
    assert {change["task"] for change in changes} == {"plain"}
    assert all(change["p"] == change["p_adjusted"] == 1.0 for change in changes)


def test_a_task_without_a_share_can_rank_no_merges(
    learnt: Path, tasks: list[Path], tmp_path: Path
) -> None:
    """A sweep and `retain` ask a model in memory, and would take 0 for its accuracy."""
    config = EvalConfig(tasks=(f"lm_eval:{tasks[3]}",), rows=1)
    subject = open_model(str(learnt), dtype="float32")
    with pytest.raises(
        EvaluationError, match=r"task read: it has no metric from 0 to 1 \(found word_p"
    ):
        evaluate.evaluate_model(
            evaluate.live_responder(subject, config),
            load_questions(config.tasks, limit=1),
            config,
            SampleFile(tmp_path / "answers.jsonl"),
            seed=1,
        )


def test_a_group_is_one_task_with_the_weights_of_lm_eval(folder: Path, tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    (tmp_path / "sums.json").write_bytes((folder / "sums.json").read_bytes())
    (tmp_path / "half.py").write_text("def first(rows):\n    return rows.select([0, 1])\n")
    task_file(tmp_path, "all", CHOSEN)
    task_file(tmp_path, "half", f"{CHOSEN}process_docs: !function half.first")
    for name, by_size in (("by_size", "true"), ("alike", "false")):
        (tmp_path / f"{name}.yaml").write_text(
            f"group: {name}\ntask: [all, half]\n"
            f"aggregate_metric_list: [{{metric: acc, weight_by_size: {by_size}}}]\n"
        )
    manager = TaskManager(include_defaults=False, include_path=str(tmp_path))
    for name, value in (("by_size", 0.5), ("alike", 0.625)):
        (task,) = expanded(manager.load([name])["groups"][name], name)
        problems = task.load_problems()
        assert [problem.id for problem in problems[3:]] == ["all/3", "half/0", "half/1"]
        samples = [
            {"id": problem.id, "scores": {"acc,none": float(number in (0, 4, 5))}}
            for number, problem in enumerate(problems)
        ]
        figures = {key: figure["value"] for key, figure in task.metrics(samples).items()}
        assert figures == {"acc,none": value, "all:acc,none": 0.25, "half:acc,none": 1.0}


def test_what_a_stage_cannot_take_is_said_before_it_starts(tasks: list[Path]) -> None:
    read, chosen, plain = (f"lm_eval:{tasks[number]}" for number in (3, 2, 0))
    stage = SimpleNamespace(tasks=(read, chosen, plain), rows=None, kind="eval")
    assert list(task_problems(stage)) == []
    stage.kind = "pairs"
    first, second = task_problems(stage)
    assert "read has no metric from 0 to 1" in first
    assert "chosen scores texts, and pairs are made of answers" in second


def test_an_endpoint_is_not_asked_for_what_it_cannot_give(tasks: list[Path]) -> None:
    endpoint = open_responder(
        Endpoint(url="http://127.0.0.1:9/v1", name="m"),
        backend="transformers",
        dtype="auto",
        batch_tokens=100,
        label="m",
    )
    for number, name in ((2, "chosen"), (5, "begun")):
        questions = load_questions([f"lm_eval:{tasks[number]}"])
        config = EvalConfig(tasks=("none",))
        with pytest.raises(EvaluationError, match=f"m.*task {name}: it scores texts, or goes on"):
            build_requests(endpoint, questions, config, name="m", seed=1)


def test_a_digest_is_that_of_content_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    digests = set()
    for place in (folder, folder, tmp_path):
        for name in ("sums.json", "trap.py"):
            (place / name).write_bytes((folder / name).read_bytes())
        text = f"{TRAP}process_docs: !function trap.every\nfewshot_split: test\n"
        (place / "trap.py").write_text(f"{TRAP_CODE}\ndef every(rows):\n    return rows\n")
        path = task_file(place, "digested", text.replace("ROWS", str(folder / "sums.json")))
        digests.add(load(str(path))[0].digest)
    assert len(digests) == 1
    (folder / "trap.py").write_text(f"{TRAP_CODE}\ndef every(rows):\n    return rows.select([0])\n")
    assert load(str(folder / "digested.yaml"))[0].digest not in digests


def test_special_tokens_are_no_part_of_an_answer(
    learnt: Path, tasks: list[Path], tmp_path: Path
) -> None:
    config = EvalConfig(tasks=(f"lm_eval:{tasks[0]}",))
    responder = evaluate.live_responder(open_model(str(learnt)), config)
    questions = load_questions(config.tasks, limit=1)
    items = build_requests(responder, questions, config, name="m", seed=1).items
    file = SampleFile(tmp_path / "answers.jsonl")
    written = ("<pad></think>\n\n 4<|im_start|>2 ", " 4<|im_start|>2 ")
    file.append(
        AnswerRecord(key=item.answer.key, generated=text, finished=True)
        for item, text in zip(items, written, strict=True)
    )
    texts = [response.texts for response in respond(responder, items, file, name="m")]
    # As lm-eval decodes: without special tokens, and with the white space of a no_think answer.
    assert texts == [("42 ",), (" 42 ",)]
