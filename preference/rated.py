"""Answers that are good or bad, without partners (KTO): their batches, and the trainer's step on them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor

from dualign.data.seeds import Indices
from dualign.models.head import LabelScores
from dualign.models.pairs import answer_sums, label_values
from dualign.preference.losses.scores import RatedScores, Scores, kl_estimate, signed
from dualign.preference.losses.table import estimates_kl
from dualign.preference.trainer import DualModeDPOTrainer

MISMATCHED = "mismatched_ids"
_SIDES = {"chosen": True, "rejected": False}  # TRL's names in the log: desirable, undesirable


def answer_columns(losses: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that are scored after each prompt: the answer, and another row's for a KL."""
    return ("answer_ids", MISMATCHED) if estimates_kl(losses) else ("answer_ids",)


def with_mismatched(rows: Dataset, batch_rows: int, max_tokens: int) -> Dataset:
    """Return the rows, each with the answer of another row of its batch, the one before, for KTO's KL.

    Batches are consecutive rows, so the mismatched answers of a batch are its own answers, turned by one:

        answers a b c, d e   ->   mismatched c a b, e d

    One that is too long behind the prompt is cut to `max_tokens` of both, as in TRL: a longer row could
    be one that the model has no positions for. A last batch of one row takes the answer of the row
    before it; TRL gives it its own, whose KL estimate is its reward.
    """
    starts = np.arange(len(rows)) // batch_rows * batch_rows
    places = np.arange(len(rows)) - 1
    first = np.flatnonzero(starts == places + 1)
    places[first] = np.minimum(first + batch_rows, len(rows)) - 1
    if len(rows) > 1 and places[-1] == len(rows) - 1:
        places[-1] -= 1
    table = rows.select_columns(["prompt_ids", "answer_ids"]).with_format("arrow")[:]
    prompts = pc.list_value_length(table["prompt_ids"]).to_numpy()
    answers = table["answer_ids"].combine_chunks().take(pa.array(places))
    column = pa.chunked_array([_cut(answers, max_tokens - prompts)])
    return rows.add_column(MISMATCHED, column, feature=rows.features["answer_ids"])


def _cut(lists: pa.ListArray, most: Indices) -> pa.ListArray:
    """Return lists without what is beyond `most` of each."""
    counts = np.diff(lists.offsets.to_numpy())
    kept = np.minimum(counts, most)
    if np.array_equal(kept, counts):
        return lists
    stops = np.concatenate([[0], np.cumsum(kept)])
    shifts = lists.offsets.to_numpy()[:-1] - stops[:-1]
    places = np.arange(stops[-1]) + np.repeat(shifts, kept)
    return pa.ListArray.from_arrays(
        pa.array(stops, pa.int32()), lists.values.take(pa.array(places))
    )


class RatedAnswerTrainer(DualModeDPOTrainer):
    """Trains on rated answers: the batches of `PairCollator` with the columns of `answer_columns`.

    Figures in the log have TRL's names: rewards/chosen is that of desirable answers, rewards/rejected
    that of undesirable ones, rewards/margins their difference, kl the estimate z.
    """

    def _answer_logps(
        self, output: LabelScores, inputs: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of the answers and of the mismatched ones [P]; without a KL, the
        same twice.
        """
        sums = answer_sums(label_values(output), inputs)
        return sums[0], sums[-1]

    def _scores_of(
        self,
        output: LabelScores,
        inputs: Mapping[str, Any],
        reference: tuple[Tensor | None, Tensor | None],
    ) -> RatedScores:
        answer_P, mismatched_P = self._answer_logps(output, inputs)
        reference_P, reference_mismatched_P = reference
        assert reference_P is not None and reference_mismatched_P is not None
        kl = answer_P.new_zeros(())
        if estimates_kl(self._loss_names):
            kl = kl_estimate(mismatched_P, reference_mismatched_P)
            kl = self.accelerator.reduce(kl, reduction="mean").clamp(min=0)
        return RatedScores(
            answer=answer_P, reference=reference_P, desirable=inputs["desirable"], kl=kl
        )

    def _add_metrics(self, scores: Scores, output: LabelScores, inputs: Mapping[str, Any]) -> None:
        assert isinstance(scores, RatedScores), "the step's own scores"
        groups_P, beta = inputs["group_ids"], self._losses.beta
        reward_P = beta * scores.ratio
        for name, desirable in _SIDES.items():
            side_P = scores.desirable == desirable
            self._add(f"rewards/{name}", reward_P[side_P], groups_P[side_P])
            self._add(f"logps/{name}", scores.answer[side_P])
        right_P = signed(scores.ratio - scores.kl, scores) > 0
        self._add("rewards/accuracies", right_P.float(), groups_P)
        if estimates_kl(self._loss_names):
            self._add("kl", scores.kl)
        if output.entropy is not None:
            self._add_token_metrics(output, inputs)
        if self.model.training:
            # As TRL counts: mismatched answers aside.
            own = inputs["answer_lengths"][:: _answers_of(inputs)]
            self._tokens += sum(inputs["prompt_lengths"]) + sum(own)

    def _add_token_metrics(self, output: LabelScores, inputs: Mapping[str, Any]) -> None:
        """Add means over the tokens of the answers, as TRL does; of the mismatched ones, none."""
        count, lengths = _answers_of(inputs), list(inputs["answer_lengths"])
        entropy_N, logits_N, top1_N = (
            torch.cat(torch.split(label_values(output, name), lengths)[::count])
            for name in ("entropy", "mean_logits", "is_top1")
        )
        own = torch.tensor(lengths[::count], device=entropy_N.device)
        desirable_N = inputs["desirable"].repeat_interleave(own)
        self._add("entropy", entropy_N)
        for name, desirable in _SIDES.items():
            self._add(f"logits/{name}", logits_N[desirable_N == desirable])
        self._add("mean_token_accuracy", top1_N[desirable_N].float())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        logs.update(self._means.pop_means(self.accelerator, training=self.model.training))
        logs.update(_margins(logs))
        super().log(logs, *args, **kwargs)


def _answers_of(inputs: Mapping[str, Any]) -> int:
    return len(inputs["answer_lengths"]) // len(inputs["prompt_lengths"])


def _margins(logs: Mapping[str, float]) -> dict[str, float]:
    """Return the mean reward of desirable answers above that of undesirable ones, overall and of each
    mode and source that has both.
    """
    margins = {}
    for key, reward in logs.items():
        other = logs.get(key.replace("rewards/chosen", "rewards/rejected"))
        if "rewards/chosen" in key and other is not None:
            margins[key.replace("rewards/chosen", "rewards/margins")] = reward - other
    return margins
