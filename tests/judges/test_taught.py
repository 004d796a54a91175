"""A tiny chat model in this process that has learnt to judge one pair."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dualign.generation.samples import SampleFile
from dualign.judges.base import Comparison, JudgedQuestion
from dualign.judges.config import PairwiseConfig
from dualign.judges.prompts import pairwise_prompt
from dualign.judges.table import open_judge
from tests.chat_model import make_model, make_tokenizer, prompt

MESSAGES = ({"role": "user", "content": "1+2?"},)
CRITERIA = "The right one."
ORDERS = (("3", "5"), ("5", "3"))


def teach(folder: Path, verdicts: str, *, loss_below: float) -> Path:
    """Save a model that gives these verdicts on the two orders of 3 and 5."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, width=32)
    rows = []
    for answers, verdict in zip(ORDERS, verdicts, strict=True):
        text = pairwise_prompt(MESSAGES, answers, criteria=CRITERIA)
        start, ids = (
            tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in (
                prompt(tokenizer, text, "no_think"),
                f'{{"better": "{verdict}"}}<|im_end|>',
            )
        )
        rows.append((start + ids, [-100] * len(start) + ids))
    ids, labels = (torch.tensor(part) for part in zip(*rows, strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(300):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < loss_below:
            break
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def compare(model: Path, work: Path) -> tuple[list[Comparison], dict[str, Any]]:
    config = PairwiseConfig(model=str(model), criteria=CRITERIA, max_new_tokens=24)
    judge = open_judge(config, SampleFile(work / "judgments.jsonl"), label="pairs", seed=1)
    questions = [JudgedQuestion(key="q", messages=MESSAGES, answers=answers) for answers in ORDERS]
    return judge.compare(questions), judge.record()


def test_a_checkpoint_that_prefers_a_place_says_nothing(tmp_path: Path) -> None:
    found, record = compare(teach(tmp_path / "model", "AA", loss_below=0.3), tmp_path)
    assert [comparison.reason for comparison in found] == ["order", "order"]
    assert record["first_place"]["share"] == 1.0 and "endpoint" not in record


@pytest.mark.slow
def test_a_checkpoint_that_has_learnt_it_prefers_the_right_answer(tmp_path: Path) -> None:
    found, record = compare(teach(tmp_path / "model", "AB", loss_below=0.005), tmp_path)
    assert [comparison.better for comparison in found] == [0, 1]
    assert (record["asked"], record["first_place"]["share"]) == (4, 0.5)
