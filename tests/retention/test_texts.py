"""Loss and divergence on fixed texts, against the whole distributions."""

from pathlib import Path

import pytest
import torch

from dualign.retention import texts
from dualign.retention.config import RetainBound
from dualign.retention.measuring import broken
from dualign.retention.texts import Text, measured_texts, remember_start, text_figures
from tests.chat_model import make_model, make_tokenizer

IDS = (5, 9, 3, 7, 11, 2)
TEXTS = [
    Text(mode="think", ids=IDS, labels=(-100, -100, *IDS[2:]), held_out=True),
    Text(mode="think", ids=IDS[::-1], labels=(-100, *IDS[-2::-1]), held_out=False),
    Text(mode="no_think", ids=IDS, labels=(-100, *IDS[1:]), held_out=False),
]


@pytest.mark.parametrize("kept", [1024, 40])
def test_the_divergence_is_the_whole_one_or_just_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(texts, "_KEPT", kept)
    tokenizer = make_tokenizer()
    start, now = (make_model(tokenizer, seed=seed) for seed in (0, 1))
    file = tmp_path / "start.safetensors"
    remember_start(start, TEXTS, file)
    at_start, figures = (text_figures(model, TEXTS, file) for model in (start, now))
    assert at_start["kl"] == {"think": 0, "no_think": 0}
    with torch.no_grad():
        p, q = (m(torch.tensor([IDS])).logits[0, :-1].log_softmax(-1) for m in (start, now))
    whole = float((p.exp() * (p - q)).sum(-1).mean())
    assert figures["kl_tokens"] == {"think": 9, "no_think": 5}
    if kept > len(tokenizer):
        assert figures["kl"]["no_think"] == pytest.approx(whole, rel=1e-5)
    else:
        assert 0.3 * whole < figures["kl"]["no_think"] < whole
    labels = torch.tensor(IDS[2:])
    nll = -q[1:].gather(1, labels[:, None]).mean()
    assert figures["loss"] == {"think": pytest.approx(float(nll), rel=1e-5)}
    assert figures["loss_tokens"] == {"think": 4}


def test_raw_text_is_measured_beside_the_modes(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    raw = Text(mode="text", ids=IDS, labels=IDS, held_out=True)
    start, now = (make_model(tokenizer, seed=seed) for seed in (0, 1))
    remember_start(start, [raw, TEXTS[0]], tmp_path / "start.safetensors")
    figures = text_figures(now, [raw, TEXTS[0]], tmp_path / "start.safetensors")
    assert [*figures["loss"]] == [*figures["kl"]] == ["think", "text"]
    assert figures["loss_tokens"]["text"] == len(IDS) - 1


def test_texts_are_taken_until_there_are_enough_positions_of_a_mode_and_kind() -> None:
    many = [Text(mode="think", ids=IDS, labels=IDS, held_out=False)] * 1000
    empty = Text(mode="think", ids=IDS, labels=(-100,) * 6, held_out=True)
    chosen = measured_texts([empty, *many, *TEXTS])
    assert len(chosen) == 410 + 2 and TEXTS[0] in chosen and TEXTS[2] in chosen


def test_a_bound_says_what_rose_and_by_how_much() -> None:
    cell = {"accuracy": 0.2, "change": -0.8, "change_ci": [-0.9, -0.4]}
    noise = {"accuracy": 0.8, "change": -0.2, "change_ci": [-0.5, 0.1]}
    tasks = {"sums": {"think": cell, "no_think": noise}, "watched": {"think": cell}}
    start = {"loss": {"think": 1.0}, "kl": {"think": 0.0, "no_think": 0.0}}
    now = {"tasks": tasks, "loss": {"think": 1.25}, "kl": {"think": 0.3, "no_think": 0.1}}
    bound = RetainBound(accuracy=-0.05, loss=0.2, kl=0.2)
    lost = {"tasks": {}, "loss": {"think": float("nan")}}
    assert len([*broken(lost, start, bound, {"sums"})]) == 1, "no number is within no bound"
    assert [*broken(now, start, bound, {"sums"})] == [
        "loss, think: +0.250 nats a token since the start, allowed 0.2",
        "kl, think: +0.300 nats a token since the start, allowed 0.2",
        "sums, think: -80.0 [-90.0, -40.0] points since the start, allowed -5.0",
    ]
