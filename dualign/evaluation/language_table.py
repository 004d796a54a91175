"""The table of languages: its cells, for the terminal, Markdown, the report and the card."""

from collections.abc import Iterator, Mapping
from typing import Any

from dualign.data.conversation import MODES
from dualign.evaluation.scores import percent, read_scores, score_text, short_label, task_names

LANGUAGE_COLUMNS = (
    "task",
    "model",
    "mode",
    "accuracy [95 %]",
    "traces in the question's language",
    "answers in the question's language",
)
LANGUAGE_LEGEND = (
    "In percent of the texts whose language is clear; in parentheses how many others there are, too "
    "short or mixed. Texts without words, such as a number alone, don't count."
)


def language_rows(metrics: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the cells of `LANGUAGE_COLUMNS` for each task, model and mode whose languages were told."""
    models = read_scores(metrics, where="metrics.json")
    for task in task_names(models):
        for model in models:
            for mode in MODES:
                cell = model.tasks.get(task, {}).get(mode, {})
                if counts := cell.get("languages"):
                    parts = [language_share(counts.get(part)) for part in ("trace", "answer")]
                    label, score = short_label(model.model), score_text(model.score(task, mode))
                    yield [task, label, mode, score, *parts]


def language_share(counts: Mapping[str, int] | None) -> str:
    """Format counts of same, other and unknown: `95.0 (+3)`; "-" of none."""
    if not counts:
        return "-"
    clear = counts["same"] + counts["other"]
    share = percent(counts["same"] / clear) if clear else "-"
    return f"{share} (+{counts['unknown']})" if counts["unknown"] else share
