"""Rank preference pairs with a model: is the chosen answer more likely, and by how much?

Measures how preference training generalizes to held-out pairs, and whether a merge keeps it. A
margin is log p(chosen | prompt) - log p(rejected | prompt) in nats, summed over the tokens of the
answer. Shapes: P pairs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.conversation import MODES, Mode
from dualign.data.prepare import DataRequest, PairData, prepare_pairs
from dualign.data.text.template import load_template
from dualign.evaluation.config import pairs_name
from dualign.evaluation.scores import Change, mean_interval, short_label
from dualign.intervals import wilson
from dualign.models.head import label_scores, without_adapters
from dualign.models.loading import EvalModel
from dualign.models.pairs import (
    MODEL_INPUTS,
    PairCollator,
    answer_sums,
    label_values,
    pair_layout,
    pair_tokens,
)
from dualign.switch import Switch
from dualign.terminal import progress

Margins = Mapping[Mode, tuple[float, ...]]

_BATCH_TOKENS = 8192
_ANY_LENGTH = 1 << 30


def pair_margins(
    subject: EvalModel,
    sources: Sequence[str | SourceConfig],
    switch: Switch | None = None,
    *,
    any_modes: bool = False,
) -> dict[str, Margins]:
    """Return each source's margins by mode, in the same order for every model.

    Args:
        switch: what switches the modes; None: what the template reads.
        any_modes: the model may have no modes; both are then asked in one way.

    Raises:
        DataError: a row contradicts itself.
        TemplateError: the model's template can't render a row.
    """
    if not sources:
        return {}
    tokenizer, weights = subject.tokenizer, without_adapters(subject.weights())
    template = load_template("tokenizer", tokenizer=tokenizer).with_switch(switch)
    margins = {}
    for pairs_of in sources:
        source = SourceConfig(path=pairs_of) if isinstance(pairs_of, str) else pairs_of
        name = pairs_name(pairs_of)
        data = DataConfig(
            sources=(source,), packing="none", max_tokens=_ANY_LENGTH, too_long="error"
        )
        pairs = prepare_pairs(DataRequest(data, tokenizer, template, seed=0, any_modes=any_modes))
        label = f"{short_label(subject.model)}, {name}"
        margins[name] = _by_mode(pairs, _margins(weights, pairs, label=label))
    return margins


def summarize_margins(margins: Sequence[float]) -> dict[str, Any]:
    """Return the metrics of one file in one mode: the share ranked right and the mean margin."""
    right = sum(margin > 0 for margin in margins)
    accuracy = right / len(margins) if margins else 0.0
    mean = mean_interval(margins)
    return {
        "n": len(margins),
        "accuracy": accuracy,
        "accuracy_ci": list(wilson(accuracy, len(margins))),
        "margin": mean and mean.value,
        "margin_ci": mean and [mean.low, mean.high],
    }


def margin_change(before: Sequence[float], after: Sequence[float]) -> Change | None:
    """Return the mean rise of the margin, pair by pair; None for fewer than two pairs."""
    return mean_interval([later - earlier for earlier, later in zip(before, after, strict=True)])


def _by_mode(pairs: PairData, margins: Sequence[float]) -> Margins:
    modes = [pairs.groups[group][0] for group in pairs.train["group"]]
    return {
        mode: tuple(margin for of, margin in zip(modes, margins, strict=True) if of == mode)
        for mode in MODES
    }


def _margins(model: PreTrainedModel, pairs: PairData, *, label: str) -> list[float]:
    """Return the margin of each pair, in their order."""
    rows = list(pairs.train)
    margins = [0.0] * len(rows)
    with progress(len(rows), label, unit="pair") as bar, pair_layout(model) as layout:
        collator = PairCollator(layout=layout)
        for batch in _batches(rows):
            for index, margin in zip(
                batch, _batch_margins(model, collator([rows[i] for i in batch])), strict=True
            ):
                margins[index] = margin
            bar.update(len(batch))
    return margins


def _batches(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[int]]:
    """Yield the places of pairs of about the same length, up to `_BATCH_TOKENS` with two prompts each."""
    sizes = [pair_tokens(row, "padded") for row in rows]
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: -sizes[index]):
        if batch and (len(batch) + 1) * sizes[batch[0]] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.no_grad()
def _batch_margins(model: PreTrainedModel, batch: Mapping[str, Any]) -> list[float]:
    inputs = {name: batch[name].to(model.device) for name in MODEL_INPUTS if name in batch}
    chosen_P, rejected_P = answer_sums(label_values(label_scores(model, **inputs)), batch)
    margins: list[float] = (chosen_P - rejected_P).tolist()
    return margins
