"""The results of an evaluation as the hub's `model-index`: each task in each mode."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult

from dualign.data.conversation import MODES
from dualign.evaluation.scores import ModelScores
from dualign.publish.sources import is_hub_id

_HARNESSES = {
    "lm-eval": ("lm-evaluation-harness", "https://github.com/EleutherAI/lm-evaluation-harness")
}
_LOCAL = ("json", "csv", "text", "parquet", "arrow", "pandas", "xml", "webdataset")
_ALIAS = re.compile(r"[\w.-]+")  # an id of the hub without an owner, as of old datasets


def eval_results(
    scores: ModelScores, sources: Mapping[str, Mapping[str, Any]]
) -> Iterator[EvalResult]:
    """Yield the metrics of each task in each mode, with 95 % intervals and counts.

    A harness's metrics keep its names and values; else it is the accuracy in percent. The hub puts
    results of one dataset and configuration together, so the mode stands for the configuration, and
    the dataset's own is among its arguments.

    Args:
        sources: task -> its entry of run.json's `data`.
    """
    for task, by_mode in scores.tasks.items():
        for mode in MODES:
            cell = by_mode.get(mode) or {}
            source = sources.get(task, {})
            if "harness" in source:
                yield from _harness_results(task, mode, cell, source)
                continue
            score = scores.score(task, mode)
            if score is not None:
                low, high = round(100 * score.low, 1), round(100 * score.high, 1)
                yield _result(
                    task,
                    mode,
                    source,
                    metric_type="accuracy",
                    metric_name=f"accuracy, {mode} (95 % interval {low} to {high}, n = {score.n})",
                    metric_value=round(100 * score.accuracy, 1),
                    metric_args={"mode": mode, "confidence_interval_95": [low, high], "n": score.n},
                )
            yield from _sampled_results(task, mode, cell, source)


def _harness_results(
    task: str, mode: str, cell: Mapping[str, Any], source: Mapping[str, Any]
) -> Iterator[EvalResult]:
    """Yield a harness's metrics: `exact_match,strict-match` is a metric behind a filter."""
    name, url = _HARNESSES.get(source["harness"], (source["harness"], None))
    version = f"{name} {source.get('version', '')}, task version {source.get('task_version', '?')}"
    for metric, figure in (cell.get("metrics") or {}).items():
        if not isinstance(figure.get("value"), int | float):
            continue
        kind, _, behind = metric.partition(",")
        interval = figure.get("ci")
        spread = f", 95 % interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
        filtered = f" ({behind})" if behind not in ("", "none") else ""
        yield _result(
            task,
            mode,
            source,
            metric_type=kind,
            metric_name=f"{kind}{filtered}, {mode}{spread}, n = {cell.get('n')}",
            metric_value=figure["value"],
            metric_args={"mode": mode, "n": cell.get("n")}
            | ({"filter": behind} if behind else {})
            | ({"confidence_interval_95": list(interval)} if interval else {}),
            source_name=version if url else None,
            source_url=url,
        )


def _sampled_results(
    task: str, mode: str, cell: Mapping[str, Any], source: Mapping[str, Any]
) -> Iterator[EvalResult]:
    """Yield pass@k and the majority vote, where a problem had several answers."""
    count = cell.get("samples")
    figures = {f"pass@{k}": figure for k, figure in (cell.get("pass_at") or {}).items() if k != "1"}
    if cell.get("majority"):
        figures[f"majority@{count}"] = cell["majority"]
    for name, figure in figures.items():
        low, high = (round(100 * limit, 1) for limit in figure["ci"])
        yield _result(
            task,
            mode,
            source,
            metric_type=name,
            metric_name=f"{name}, {mode} (95 % interval {low} to {high}, {count} answers each)",
            metric_value=round(100 * figure["value"], 1),
            metric_args={"mode": mode, "confidence_interval_95": [low, high], "samples": count},
        )


def _result(task: str, mode: str, source: Mapping[str, Any], **metric: Any) -> EvalResult:
    dataset: Mapping[str, Any] = source.get("dataset") or {}
    arguments = {"config": dataset.get("config"), "num_few_shot": source.get("num_fewshot")}
    return EvalResult(
        task_type="text-generation",
        task_name=f"{task} ({mode})",
        dataset_type=_dataset_id(source) or slug(task),
        dataset_name=task,
        dataset_config=mode,
        dataset_split=dataset.get("split"),
        dataset_args={key: value for key, value in arguments.items() if value is not None} or None,
        **metric,
    )


def _dataset_id(source: Mapping[str, Any]) -> str | None:
    """Return the dataset of the hub that a task's problems are from; None for files."""
    path = str((source.get("dataset") or {}).get("path") or "")
    if path and path not in _LOCAL and (_ALIAS.fullmatch(path) or is_hub_id(path)):
        return path
    of_file = str(source.get("source"))
    return of_file if is_hub_id(of_file) else None


def slug(text: str) -> str:
    """Return the text as a valid file name and dataset type."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-") or "task"
