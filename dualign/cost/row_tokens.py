"""Tokens of the rows that a stage trains on, as its batches have them."""

from dataclasses import replace
from typing import Any

from dualign.data.prepare import PairData, Prepared, RatedData
from dualign.stages import stage_kind


def scored_tokens(data: PairData | RatedData, answers: int) -> tuple[int, int, float]:
    """Return (longest, largest, mean) in tokens of a row.

    `longest` is a prompt with its longer answer, `largest` a prompt with all of its `answers`. `mean` is a
    whole row with its prompt for each answer, as TRL counts. The second answer of a rated one is another
    row's: the longest of all counts in `largest`, their mean in `mean`.
    """
    prompts = [len(ids) for ids in data.train["prompt_ids"]]
    if isinstance(data, PairData):
        sides = [[len(ids) for ids in data.train[name]] for name in ("chosen_ids", "rejected_ids")]
        rows = list(zip(prompts, *sides, strict=True))
        longest = max(prompt + max(first, second) for prompt, first, second in rows)
        mean = sum(2 * prompt + first + second for prompt, first, second in rows) / len(rows)
        return longest, max(map(sum, rows)), mean
    lengths = [len(ids) for ids in data.train["answer_ids"]]
    longest = max(map(sum, zip(prompts, lengths, strict=True)))
    mean = answers * (sum(prompts) + sum(lengths)) / len(lengths)
    return longest, longest + (answers - 1) * max(lengths), mean


def _mean_pair(data: PairData | RatedData) -> float:
    """Return the mean tokens of a row whose prompt counts once, mismatched answers aside."""
    names = [name for name in data.train.column_names if name.endswith("_ids")]
    return sum(len(ids) for name in names for ids in data.train[name]) / len(data.train)


def row_lengths(config: Any, data: Prepared | None) -> tuple[int, int | None, float]:
    """Return the tokens of the longest row, of both answers of the largest pair, and of the mean row."""
    if isinstance(data, PairData | RatedData):
        return scored_tokens(data, config.answers_per_row)
    longest = config.data.max_tokens
    if data:
        return longest, None, data.rows["tokens"] / len(data.train)
    answers = config.answers_per_row if stage_kind(config.kind).takes_pairs else 1
    return longest, None, float(longest * answers)


def attention_span(config: Any, data: Prepared | None) -> float | None:
    """Return the tokens that a token's document has, on average; None if the rows aren't known.

    Attention by document costs as much as in rows of this length: sum of squares over sum.
    """
    if data is None or config.attn_implementation in ("sdpa", "eager"):
        return None
    if isinstance(data, PairData | RatedData):
        names = [name for name in data.train.column_names if name.endswith("_ids")]
        lengths = [sum(map(len, row)) for row in zip(*(data.train[n] for n in names), strict=True)]
    else:
        lengths = [length for row in data.train["seq_lengths"] for length in row]
    return sum(length**2 for length in lengths) / sum(lengths)


def by_pairs(config: Any, data: Prepared | None) -> Any:
    """Return the config with the pairs that `batch_tokens` holds on average as its batch size."""
    most = getattr(config, "batch_tokens", None)
    if most is None:
        return config
    mean = float(config.answers_per_row * config.data.max_tokens)
    if isinstance(data, PairData | RatedData):
        mean = _mean_pair(data)
    pairs = max(1, int(most / mean))
    return replace(config, train={**config.train, "per_device_train_batch_size": pairs})
