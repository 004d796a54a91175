"""The table of thinking budgets: its cells, for the terminal, Markdown, the report and the card."""

from collections.abc import Iterator, Mapping
from typing import Any

from dualign.evaluation.scores import Change, Score, change_text, percent, score_text, short_label

BUDGET_COLUMNS = (
    "task",
    "model",
    "budget",
    "accuracy [95 %]",
    "against none [95 %]",
    "closed",
    "think tokens",
    "answer tokens",
)
BUDGET_LEGEND = (
    "Budget: tokens after which a trace is closed; none: the whole answers. Closed: traces that the "
    "budget ended, in percent; where it ended none, the whole answer counts. Against none: on the "
    "same problems, in points; in parentheses if not measurable. Tokens: means."
)


def budget_rows(metrics: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the cells of `BUDGET_COLUMNS` for each task, model and budget."""
    for task, model, cell in _budget_cells(metrics):
        for entry in cell["budgets"]:
            yield [task, short_label(model), *_cells(entry)]


def budget_notes(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence on each task and model: its area, the budget that is enough, and the cost."""
    for task, model, cell in _budget_cells(metrics):
        enough, tokens = cell["budget_95"], cell["budget_tokens"]
        reached = (
            "no budget below reaches 95 % of the whole accuracy"
            if enough is None
            else f"95 % of the whole accuracy from a budget of {enough:,} tokens"
        )
        yield (
            f"{task}, {short_label(model)}: {reached}; area under accuracy over log tokens "
            f"{percent(cell['budget_area'])} %; {tokens['written']:,} tokens written for all budgets, "
            f"{tokens['apart']:,} if each had been asked alone."
        )


def _cells(entry: Mapping[str, Any]) -> list[str]:
    low, high = entry["accuracy_ci"]
    score = Score(accuracy=entry["accuracy"], low=low, high=high, n=entry["n"])
    is_whole = entry["budget"] is None
    return [
        "none" if is_whole else f"{entry['budget']:,}",
        score_text(score),
        "" if is_whole else change_text(Change.of(entry["against_none"], entry["against_none_ci"])),
        "" if is_whole else percent(entry["closed_by_budget"]),
        f"{entry['think_tokens']:.1f}",
        f"{entry['answer_tokens']:.1f}",
    ]


def _budget_cells(
    metrics: Mapping[str, Any],
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield (task, model, metrics of think mode) where there are budgets, models below their task."""
    entries = metrics.get("all") or [metrics]
    for task in dict.fromkeys(task for entry in entries for task in entry.get("tasks", {})):
        for entry in entries:
            cell = entry["tasks"].get(task, {}).get("think", {})
            if cell.get("budgets"):
                yield task, str(entry["model"]), cell
