"""The whole evaluation of tiny models whose answers are known."""

import json
import re
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import dualign.evaluation.evaluate as evaluate
import dualign.generation.responders as responders
from dualign.data.text.template import load_template
from dualign.errors import CheckpointError, EvaluationError
from dualign.evaluation.config import EvalStage
from dualign.models.loading import identity, load_model
from dualign.models.tokenizer import load_chat_tokenizer
from dualign.switch import Switch
from tests.chat_model import LEARNT
from tests.data.text import families

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def stage(*models, tasks, **options):
    options = {"max_new_tokens": 40, "batch_tokens": 900} | options
    names = tuple(str(model) for model in models)
    return EvalStage(name="eval", models=names, tasks=tuple(map(str, tasks)), **options)


def samples_of(folder):
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


@pytest.fixture
def own_task_file(task_file, tmp_path):
    """A copy that a test may change: other tests read the first."""
    return shutil.copytree(task_file.parent, tmp_path / "tasks") / task_file.name


@pytest.fixture
def counted(monkeypatch):
    """How many prompts were really generated for."""
    asked = []
    real = responders.generate_batches

    def counting(model, tokenizer, prompts, *args, **options):
        asked.append(len(prompts))
        return real(model, tokenizer, prompts, *args, **options)

    monkeypatch.setattr(responders, "generate_batches", counting)
    return asked


def without_modes(source, target):
    """The same weights under a template that knows no modes."""
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(target)
    return target


def test_known_answers_give_known_figures(learnt, task_file, tmp_path, capsys):
    outcome = evaluate.run(stage(learnt, tasks=[task_file]), tmp_path / "out", seed=1)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    assert metrics["model"] == str(learnt)
    assert metrics["mode_switch"] is True
    think, no_think = (metrics["tasks"]["sums"][mode] for mode in ("think", "no_think"))
    assert (think["accuracy"], no_think["accuracy"]) == (1.0, 0.25)
    assert (think["n"], no_think["n"]) == (4, 4)
    assert (think["closed_rate"], think["empty_think_rate"], think["leak_rate"]) == (1.0, 0.0, 0.0)
    assert no_think["leak_rate"] == 0.0
    assert think["gain"] == 0.75
    assert (think["reasons"], no_think["reasons"]) == ({}, {"another number": 3})
    assert think["think_tokens"]["p50"] == 11.5  # 11, 10, 12, 12 letters, one token each
    # mean 11.25, standard deviation 0.957: +- 1.96 * 0.957 / 2
    assert think["think_tokens"]["mean_ci"] == pytest.approx([10.31, 12.19], abs=0.01)
    assert no_think["think_tokens"]["mean"] == 0.0
    assert outcome.metrics["tasks"] == metrics["tasks"]
    assert outcome.data[0]["rows"] == 4
    assert re.search(r" think +. 100\.0 \[51", capsys.readouterr().out)
    table = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert "| no_think | 25.0 [" in table
    assert "| 11.2 [10.3, 12.2] |" in table


def test_samples_hold_what_was_thought_and_said(learnt, task_file, tmp_path):
    evaluate.run(stage(learnt, tasks=[task_file]), tmp_path, seed=1)
    found = {(row["id"], row["mode"]): row for row in samples_of(tmp_path)}
    assert len(found) == 8
    for question, (thought, right, quick) in LEARNT.items():
        slow, fast = found[question, "think"], found[question, "no_think"]
        assert (slow["thinking"], slow["answer"], slow["correct"]) == (thought, right, True)
        assert (fast["thinking"], fast["answer"]) == (None, quick)
        assert fast["correct"] is (quick == right)
        assert (slow["reason"], fast["reason"]) == ("", "" if quick == right else "another number")
        assert slow["prompt"] == f"What is {question}?"
    assert found["4+5", "think"]["difficulty"] == 1


def test_a_limit_inside_the_thinking_is_counted_as_cut_and_wrong(learnt, task_file, tmp_path):
    only = stage(learnt, tasks=[task_file], max_new_tokens=5, max_new_tokens_no_think=40)
    tasks = evaluate.run(only, tmp_path, seed=1).metrics["tasks"]["sums"]
    assert tasks["think"]["cut_in_think_rate"] == 1.0
    assert tasks["think"]["accuracy"] == 0.0
    assert tasks["no_think"]["accuracy"] == 0.25


def test_a_cut_trace_is_wrong_even_where_nothing_would_be_right(learnt, task_file, tmp_path):
    """The empty text that is left of a cut trace holds no forbidden word, but it is no answer."""
    rows = "\n".join(
        json.dumps({"id": question, "question": f"What is {question}?", "answer": "(?s).*"})
        for question in LEARNT
    )
    (tmp_path / "any.jsonl").write_text(rows)
    task = tmp_path / "any.yaml"
    task.write_text("name: any\nrows: any.jsonl\nprompt: '{question}'\nverifier: regex\n")
    only = stage(learnt, tasks=[task], max_new_tokens=5, max_new_tokens_no_think=40)
    tasks = evaluate.run(only, tmp_path / "out", seed=1).metrics["tasks"]["any"]
    think, no_think = tasks["think"], tasks["no_think"]
    assert (think["accuracy"], think["reasons"]) == (0.0, {"trace cut": 4})
    assert think["cut_in_think_rate"] == think["unfinished_rate"] == 1.0
    assert (no_think["accuracy"], no_think["unfinished_rate"]) == (1.0, 0.0)


def test_an_answer_at_the_limit_is_judged_and_counted(learnt, task_file, tmp_path):
    """As lm-evaluation-harness does it; the answers' own tokens are one each."""
    only = stage(learnt, tasks=[task_file], max_new_tokens=40, max_new_tokens_no_think=1)
    evaluate.run(only, tmp_path, seed=1)
    cut = [row for row in samples_of(tmp_path) if not row["finished"]]
    assert cut and all(row["mode"] == "no_think" and row["answer"] for row in cut)
    assert all(row["reason"] != "trace cut" for row in cut)


def test_fields_of_a_row_are_no_figures_of_its_answer(learnt, own_task_file, tmp_path):
    rows = own_task_file.parent / "sums.jsonl"
    fields = {"score": 7, "budget": 3, "more": "of it", "token_ids": "7", "likelihoods": "high"}
    marked = [json.loads(line) | fields for line in rows.read_text().splitlines()]
    rows.write_text("\n".join(map(json.dumps, marked)))
    tasks = evaluate.run(stage(learnt, tasks=[own_task_file]), tmp_path / "out", seed=1).metrics[
        "tasks"
    ]
    assert tasks["sums"]["think"]["accuracy"] == 1.0
    assert {(row["row_score"], "score" in row) for row in samples_of(tmp_path / "out")} == {
        (7, False)
    }
    again = evaluate.run(stage(learnt, tasks=[own_task_file]), tmp_path / "out", seed=1)
    assert again.metrics["tasks"] == tasks


def test_a_killed_evaluation_goes_on_where_it_was(learnt, task_file, tmp_path, counted):
    whole, again = tmp_path / "whole", tmp_path / "again"
    evaluate.run(stage(learnt, tasks=[task_file]), whole, seed=1)
    assert counted == [8]
    again.mkdir()
    lines = (whole / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    # Three answers had been written, and the fourth half.
    (again / "samples.jsonl").write_text("\n".join([*lines[:3], lines[3][:40]]), encoding="utf-8")
    evaluate.run(stage(learnt, tasks=[task_file]), again, seed=1)
    assert counted == [8, 5]
    for name in ("samples.jsonl", "metrics.json"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()


def test_a_crash_loses_one_batch_at_most(learnt, task_file, tmp_path, monkeypatch, counted):
    real = evaluate.SampleFile.append
    written = []

    def failing(self, answers):
        if len(written) == 2:
            raise KeyboardInterrupt
        real(self, answers)
        written.append(1)

    monkeypatch.setattr(evaluate.SampleFile, "append", failing)
    small = stage(learnt, tasks=[task_file], batch_tokens=200)  # 1 or 2 rows a batch
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(small, tmp_path, seed=1)
    assert not (tmp_path / "metrics.json").exists()
    kept = len(samples_of(tmp_path))
    assert kept > 0
    monkeypatch.setattr(evaluate.SampleFile, "append", real)
    evaluate.run(small, tmp_path, seed=1)
    assert counted == [8, 8 - kept]


def test_answers_to_other_settings_are_not_used_again(learnt, task_file, tmp_path, counted):
    evaluate.run(stage(learnt, tasks=[task_file]), tmp_path, seed=1)
    evaluate.run(stage(learnt, tasks=[task_file]), tmp_path, seed=1)
    assert counted == [8]
    evaluate.run(stage(learnt, tasks=[task_file], max_new_tokens=41), tmp_path, seed=1)
    assert counted == [8, 8]


def test_a_damaged_line_in_the_middle_is_an_error(learnt, task_file, tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"half": \n{"key": 1}\n', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"samples\.jsonl:1: expected a sample"):
        evaluate.run(stage(learnt, tasks=[task_file]), tmp_path, seed=1)


@pytest.mark.parametrize("template", ["without modes", "with modes that nobody wants"])
def test_a_model_without_modes_is_asked_once_for_both(
    learnt, task_file, tmp_path, counted, template
):
    plain = without_modes(learnt, tmp_path / "plain") if template == "without modes" else learnt
    without = stage(plain, tasks=[task_file], switch=Switch())
    metrics = evaluate.run(without, tmp_path / "out", seed=1).metrics
    assert metrics["mode_switch"] is False
    assert counted == [4]
    rows = {(row["id"], row["mode"]): row for row in samples_of(tmp_path / "out")}
    for question in LEARNT:
        assert rows[question, "think"]["rendered"] == rows[question, "no_think"]["rendered"]
    assert "has no mode switch" in (tmp_path / "out/table.md").read_text(encoding="utf-8")


def test_one_prompt_for_both_modes_is_refused_unless_the_model_is_a_baseline(
    learnt, task_file, tmp_path, counted
):
    plain = without_modes(learnt, tmp_path / "plain")
    for switch in (None, Switch(think={"depth": 1}, no_think={"depth": 0})):
        with pytest.raises(EvaluationError) as caught:
            evaluate.run(stage(learnt, plain, tasks=[task_file], switch=switch), tmp_path, seed=1)
        assert "plain, task sums: both modes have the same prompt. Tried: " in str(caught.value)
        assert "switch: {think: {thinking: true}" in str(caught.value)
    assert counted == []  # before any model is asked
    metrics = evaluate.run(stage(plain, learnt, tasks=[task_file]), tmp_path, seed=1).metrics
    assert [model["mode_switch"] for model in metrics["all"]] == [False, True]


def test_a_task_is_asked_by_its_own_switch_before_the_stage_s(learnt, task_file, tmp_path):
    """The template's own switch is found; a stage may name another, and a task one more."""
    family = without_modes(learnt, tmp_path / "family")
    tokenizer = AutoTokenizer.from_pretrained(family)
    tokenizer.chat_template = families.GRANITE
    tokenizer.save_pretrained(family)
    words = Switch(think={"system": "Think."}, no_think={"system": "Answer."})
    own = tmp_path / "own.yaml"
    text = task_file.read_text(encoding="utf-8").replace("name: sums", "name: own")
    own.write_text(text + "switch: {think: {thinking: true}, no_think: {thinking: false}}\n")
    (tmp_path / "sums.jsonl").write_text((task_file.parent / "sums.jsonl").read_text())
    found = stage(family, tasks=[task_file])
    heads = {
        (row["task"], row["mode"]): row["rendered"].partition("<|im_end|>")[0]
        for row in rendered(found, tmp_path / "found")
    }
    assert "Think in a <think> block." in heads["sums", "think"]
    assert heads["sums", "no_think"].endswith("You are Granite.")
    named = stage(family, tasks=[task_file, own], switch=words)
    heads = {
        (row["task"], row["mode"]): row["rendered"].partition("<|im_end|>")[0]
        for row in rendered(named, tmp_path / "named")
    }
    assert heads["sums", "think"].endswith("Think.") and heads["sums", "no_think"].endswith(
        "Answer."
    )
    assert "Think in a <think> block." in heads["own", "think"]


def rendered(subject, folder):
    evaluate.run(subject, folder, seed=1)
    return samples_of(folder)


@pytest.mark.parametrize("template", ["dualign", "smollm3"])
def test_a_problem_that_says_its_mode_itself_is_refused(learnt, tmp_path, template):
    AutoModelForCausalLM.from_pretrained(learnt).save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(learnt)
    tokenizer.chat_template = load_template(template).text
    tokenizer.save_pretrained(tmp_path / "model")
    turns = [{"role": "system", "content": "Be brief. /think"}, {"role": "user", "content": "1+1?"}]
    (tmp_path / "sums.jsonl").write_text(
        json.dumps({"id": "one", "messages": turns, "answer": "2"})
    )
    (tmp_path / "sums.yaml").write_text("name: sums\nrows: sums.jsonl\nverifier: integer\n")
    with pytest.raises(EvaluationError, match="sums, problem one: its prompt is the same in both"):
        evaluate.run(stage(tmp_path / "model", tasks=[tmp_path / "sums.yaml"]), tmp_path, seed=1)


def test_several_models_are_compared_with_the_one_before(learnt, task_file, tmp_path):
    plain = without_modes(learnt, tmp_path / "plain")
    metrics = evaluate.run(
        stage(plain, learnt, tasks=[task_file]), tmp_path / "out", seed=1
    ).metrics
    assert metrics["model"] == str(learnt)
    assert [entry["model"] for entry in metrics["all"]] == [str(plain), str(learnt)]
    changes = {change["mode"]: change for change in metrics["changes"]}
    assert changes["think"]["against"] == str(plain)
    before, after = (entry["tasks"]["sums"]["think"]["accuracy"] for entry in metrics["all"])
    assert changes["think"]["value"] == after - before
    assert {row["model"] for row in samples_of(tmp_path / "out")} == {str(plain), str(learnt)}
    assert changes["no_think"]["think_tokens"] is None


def test_sampling_is_seeded_and_resumes_alike(learnt, task_file, tmp_path):
    warm = {"tasks": [task_file], "temperature": 2.0}
    first = evaluate.run(stage(learnt, **warm), tmp_path / "a", seed=1)
    again = evaluate.run(stage(learnt, **warm, batch_tokens=100), tmp_path / "b", seed=1)
    evaluate.run(stage(learnt, **warm), tmp_path / "c", seed=2)
    assert first.metrics == again.metrics
    texts = [[row["generated"] for row in samples_of(tmp_path / name)] for name in "abc"]
    assert texts[0] == texts[1] != texts[2]


def test_several_answers_go_on_from_one(learnt, task_file, tmp_path, counted):
    """The first of several is that of a single one, so what was answered is kept."""
    warm = {"tasks": [task_file], "temperature": 2.0}
    evaluate.run(stage(learnt, **warm), tmp_path, seed=1)
    single = {(row["mode"], row["id"]): row["generated"] for row in samples_of(tmp_path)}
    metrics = evaluate.run(stage(learnt, **warm, samples=3), tmp_path, seed=1).metrics
    assert counted == [8, 16]
    rows = samples_of(tmp_path)
    assert [row["sample"] for row in rows] == [0, 1, 2] * 8
    first = {(r["mode"], r["id"]): r["generated"] for r in rows if r["sample"] == 0}
    assert first == single
    assert len({row["key"] for row in rows}) == 24
    think = metrics["tasks"]["sums"]["think"]
    right = [row["correct"] for row in rows if row["mode"] == "think"]
    assert (think["n"], think["samples"]) == (4, 3)
    assert think["accuracy"] == pytest.approx(sum(right) / 12)
    assert think["pass_at"]["1"]["value"] == pytest.approx(think["accuracy"])
    assert {row["vote"] for row in rows} > {row["answer"] for row in rows if row["correct"]}
    assert "3 answers to each problem" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_each_mode_is_sampled_in_its_own_way(learnt, task_file, tmp_path, counted):
    """no_think stays greedy: its answers are those of a greedy evaluation, and are used again."""
    evaluate.run(stage(learnt, tasks=[task_file]), tmp_path, seed=1)
    mixed = {"temperature": 2.0, "top_k": 20, "temperature_no_think": 0.0, "samples": 2}
    asked = stage(learnt, tasks=[task_file], **mixed, samples_no_think=1)
    assert not asked.problems()
    metrics = evaluate.run(asked, tmp_path, seed=1).metrics["tasks"]["sums"]
    assert counted == [8, 8]
    assert (metrics["think"]["samples"], "samples" in metrics["no_think"]) == (2, False)
    assert metrics["no_think"]["accuracy"] == 0.25
    assert metrics["think"]["gain"] == pytest.approx(metrics["think"]["accuracy"] - 0.25)
    # A model without modes is asked in think mode's way in both.
    plain = without_modes(learnt, tmp_path / "plain")
    alone = stage(plain, tasks=[task_file], switch=Switch(), **mixed, samples_no_think=1)
    evaluate.run(alone, tmp_path / "alone", seed=1)
    assert len(samples_of(tmp_path / "alone")) == 16


def test_a_task_may_have_more_answers_than_its_stage(learnt, own_task_file, tmp_path):
    with own_task_file.open("a") as file:
        file.write("samples: 3\n")
    mixed = {"temperature": 2.0, "temperature_no_think": 0.0}
    tasks = evaluate.run(stage(learnt, tasks=[own_task_file], **mixed), tmp_path, seed=1).metrics[
        "tasks"
    ]
    think, no_think = tasks["sums"]["think"], tasks["sums"]["no_think"]
    assert (think["samples"], think["n"]) == (3, 4)
    assert "samples" not in no_think  # greedy: its answers would be equal


def adapter_of(learnt, target):
    base = AutoModelForCausalLM.from_pretrained(learnt)
    config = LoraConfig(
        r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    torch.manual_seed(0)
    get_peft_model(base, config).save_pretrained(target)
    return target


def test_an_adapter_folder_answers_as_its_base_with_the_adapter(learnt, tmp_path):
    folder = adapter_of(learnt, tmp_path / "adapter")
    named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert named["base_model_name_or_path"] == str(learnt)
    base = AutoModelForCausalLM.from_pretrained(learnt)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        without = base(ids).logits.clone()
        wanted = PeftModel.from_pretrained(base, str(folder)).eval()(ids).logits
        found = load_model(str(folder))(ids).logits
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(found, without, atol=1e-1)
    assert load_chat_tokenizer(str(folder)).chat_template  # PEFT saved none: it is the base's
    assert identity(str(folder)) != identity(str(learnt))


def test_a_model_without_a_chat_template_is_refused(learnt, tmp_path):
    AutoModelForCausalLM.from_pretrained(learnt).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(learnt)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has no chat template"):
        load_chat_tokenizer(str(tmp_path))


def test_without_vllm_its_server_is_named(learnt, task_file, tmp_path):
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(
            EvaluationError, match="serve the model with vLLM from an environment of its own"
        ):
            evaluate.run(stage(learnt, tasks=[task_file], backend="vllm"), tmp_path, seed=1)
