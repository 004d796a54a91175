"""Tokens of the rows that a preference stage trains on, as its batches have them."""

from dualign.data.prepare import PairData, RatedData


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


def mean_pair(data: PairData | RatedData) -> float:
    """Return the mean tokens of a row whose prompt counts once, mismatched answers aside."""
    names = [name for name in data.train.column_names if name.endswith("_ids")]
    return sum(len(ids) for name in names for ids in data.train[name]) / len(data.train)
