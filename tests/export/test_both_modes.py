"""Both modes of an exported model beside the one that it was made from."""

import json
import math

import pytest
import torch

from dualign.errors import EvaluationError
from dualign.evaluation.config import EvalConfig
from dualign.evaluation.divergence import scorer, token_divergences
from dualign.evaluation.scores import Change
from dualign.export.both_modes import (
    MAX_KL,
    ModeComparison,
    Questions,
    Rate,
    Side,
    compare_modes,
)
from dualign.export.questions import questions_for
from dualign.generation.responders import CheckpointResponder
from dualign.models.loading import open_model
from dualign.tasks.table import load_questions


def side(subject) -> Side:
    responder = CheckpointResponder(
        subject, backend="transformers", dtype="auto", batch_tokens=4096, label="a model"
    )
    return Side(responder=responder, scores=scorer(subject.weights()))


def test_a_copy_is_as_good_in_both_modes(learnt, task_file):
    model = open_model(str(learnt))
    questions = Questions(tasks=load_questions([str(task_file)]), origin="sums")
    result = compare_modes(
        side(model),
        side(model),
        questions,
        EvalConfig(tasks=(str(task_file),)),
        tokenizer=model.tokenizer,
    )
    think, no_think = result.modes
    assert (think.mode, think.accuracy.before, think.accuracy.after) == ("think", 1.0, 1.0)
    assert (no_think.mode, no_think.accuracy.before) == ("no_think", 0.25)
    assert think.same == no_think.same == 4
    assert think.trace.kl == think.answer.kl == no_think.answer.kl == 0
    assert no_think.trace is None and think.trace.tokens > think.answer.tokens > 0
    assert result.faults() == []


def test_a_model_that_lost_think_mode_is_beyond_the_bounds(learnt, task_file):
    """The tag that closes a trace is never written again: no trace ends, and KL rises there."""
    good, bad = open_model(str(learnt)), open_model(str(learnt))
    closing = good.tokenizer.convert_tokens_to_ids("</think>")
    with torch.no_grad():
        bad.weights().lm_head.weight[closing] = 0
        bad.weights().lm_head.weight[closing] -= good.weights().lm_head.weight[closing]
    questions = Questions(tasks=load_questions([str(task_file)]), origin="sums")
    result = compare_modes(
        side(good),
        side(bad),
        questions,
        EvalConfig(tasks=(str(task_file),)),
        tokenizer=good.tokenizer,
    )
    think, no_think = result.modes
    assert think.accuracy.after == think.closed.after == 0
    assert think.trace.kl > MAX_KL > no_think.answer.kl
    faults = result.faults()
    assert all(fault.startswith("think: ") for fault in faults)
    assert any("KL" in fault for fault in faults) and any("closed traces" in f for f in faults)
    assert json.loads(json.dumps(result.record()))["beyond"] == faults


def test_a_comparison_that_asks_nothing_in_a_mode_is_refused(learnt):
    model = open_model(str(learnt))
    for questions in (Questions(origin="nothing"), Questions(prompts=(("think", "Hi"),))):
        with pytest.raises(EvaluationError, match=r"no question in (no_)?think mode"):
            compare_modes(
                side(model),
                side(model),
                questions,
                EvalConfig(max_new_tokens=2),
                tokenizer=model.tokenizer,
            )


def rate(low: float, high: float) -> Rate:
    value = (low + high) / 2
    return Rate(before=0.9, after=0.9 + value, change=Change(value=value, low=low, high=high))


@pytest.mark.parametrize(
    ("low", "high", "refused"),
    [
        (-0.3, -0.1, True),
        (-0.3, 0.01, False),  # might be chance
        (-0.06, -0.02, False),  # measurable, and small
        (0.1, 0.3, False),
    ],
)
@pytest.mark.parametrize("kind", ["accuracy", "finished"])
def test_a_loss_is_refused_if_it_is_measurable_and_large(kind, low, high, refused):
    from dualign.evaluation.divergence import mean_divergence

    none = mean_divergence([])
    same = Rate.of([1.0, 1.0], [1.0, 1.0])
    rates = {"accuracy": None, "unleaked": same, "closed": None, "finished": same}
    mode = ModeComparison(
        mode="no_think", answers=2, same=2, trace=None, answer=none,
        **(rates | {kind: rate(low, high)}),
    )  # fmt: skip
    assert bool(mode.faults()) is refused


def test_the_divergence_of_a_token_is_that_of_its_distributions(learnt):
    model = open_model(str(learnt))

    def other(ids, start):
        flat = torch.zeros(len(ids) - start, len(model.tokenizer))
        return flat.log_softmax(-1)

    read = token_divergences(scorer(model.weights()), other, model.tokenizer, "Hi", "ab</think>c")
    ids = model.tokenizer("Hiab</think>c", add_special_tokens=False)["input_ids"]
    logps = model.weights()(torch.tensor([ids])).logits[0, 1:-1].log_softmax(-1)
    entropies = -(logps.exp() * logps).sum(-1)
    expected = [math.log(len(model.tokenizer)) - entropy for entropy in entropies.tolist()]
    assert read.kl == pytest.approx(expected, abs=1e-4)
    assert read.starts == (0, 1, 2, 10)


def test_a_model_without_a_run_is_asked_a_few_questions_in_both_modes(learnt):
    tokenizer = open_model(str(learnt)).tokenizer
    questions, config = questions_for(str(learnt), tokenizer, [], rows=5)
    assert [mode for mode, _ in questions.prompts] == ["think"] * 3 + ["no_think"] * 3
    assert questions.prompts[0][1] != questions.prompts[3][1]
    assert config.max_new_tokens == 512
    assert questions_for(str(learnt), tokenizer, [], rows=5, plain=False)[0] == Questions()


def test_named_tasks_are_asked(learnt, task_file):
    tokenizer = open_model(str(learnt)).tokenizer
    questions, _ = questions_for(str(learnt), tokenizer, [str(task_file)], rows=3)
    assert questions.origin == "3 problems of sums" and not questions.prompts
