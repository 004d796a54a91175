"""The verdict of lm-evaluation-harness: a task's own filters and metrics on what a model answered.

The filters see the answer alone, never its trace.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from dualign.errors import DataError, excerpt
from dualign.verifiers.base import Verdict, Verifier

_INVALID = "[invalid]"  # what lm-eval's filters give where they find nothing


class Target(str):
    """What lm-eval expects of an answer, as text, with the task, row and requests behind it."""

    __slots__ = ("doc", "instances", "stop", "task")
    task: Any
    doc: Any
    instances: tuple[Any, ...]
    stop: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LmEvalCheck(Verifier):
    """An answer, or log-probabilities, judged by lm-eval's own code.

    `right` is by the task's first metric that is a mean of values from 0 to 1; without one nothing
    is right, and the metrics alone count.
    """

    kind: str = "lm_eval"

    @property
    def needs_expected(self) -> bool:
        return False

    def read(self, expected: Any) -> Any:
        return expected

    def judge(self, answer: str, expected: Any) -> Verdict:
        return self.judge_responses([[answer]], expected)

    def vote(self, answer: str, expected: Any) -> str | None:
        """Return what the task's first filter takes from an answer; None where it finds nothing."""
        assert isinstance(expected, Target), "problems of lm-eval have targets"
        try:
            instances = _filtered(expected, [[answer]])
        except Exception:  # code of tasks can raise anything; the verdict says what
            return None
        text = next(iter(instances[0].filtered_resps.values()))
        return (text.strip() or None) if isinstance(text, str) and text != _INVALID else None

    def judge_responses(
        self, responses: Sequence[Sequence[Any]], expected: Any, *, cut: bool = False
    ) -> Verdict:
        """Return the verdict on what a model said to each request of a row, as often as it was asked.

        Args:
            responses: texts, or pairs of a log-probability and whether it is greedy.
            cut: a trace was cut before its answer, so no metric counts it as right.
        """
        assert isinstance(expected, Target), "problems of lm-eval have targets"
        try:
            values = _values(expected, responses)
        except Exception as error:  # code of tasks can raise anything
            raise DataError(
                f"lm-eval's code of {expected.task.task_name} fails "
                f"({type(error).__name__}: {excerpt(str(error))})"
            ) from error
        if cut:
            values = {name: 0.0 if _is_score(value) else value for name, value in values.items()}
        primary = _primary_metric(expected.task, values)
        score = None if primary is None else float(values[primary])
        right = score == 1
        reason = "no metric from 0 to 1" if primary is None else f"{primary}: {score:g}"
        if cut:
            reason = "trace cut"
        elif right:
            reason = ""
        return Verdict(right, reason, score=score, scores=values)


def _primary_metric(task: Any, values: Mapping[str, Any]) -> str | None:
    """Return the first metric whose mean over rows is an accuracy; None if there is none."""
    means = [name for name in values if _is_mean(aggregation_of(task, name))]
    return next((name for name in means if _is_score(values[name])), None)


def has_mean(task: Any) -> bool:
    """Return whether one of a task's metrics may be an accuracy."""
    return any(map(_is_mean, task.aggregation().values()))


def aggregation_of(task: Any, name: str) -> Any:
    """Return the function that makes a metric of its values; `name` is `metric,filter`."""
    from lm_eval.api.metrics import mean

    return task.aggregation().get(name.rpartition(",")[0], mean)


def _is_mean(aggregation: Any) -> bool:
    from lm_eval.api.metrics import mean, nanmean

    return aggregation in (mean, nanmean)


def _is_score(value: Any) -> bool:
    """Return whether a value is a share of what can be right."""
    return isinstance(value, int | float) and 0 <= value <= 1


def _filtered(expected: Target, responses: Sequence[Sequence[Any]]) -> list[Any]:
    """Return lm-eval's requests of a row with what each filter takes from their responses."""
    instances = [copy(instance) for instance in expected.instances]
    for instance, response in zip(instances, responses, strict=True):
        instance.resps = [_response(instance, item, expected.stop) for item in response]
        instance.filtered_resps = {}
    for filters in expected.task._filters:
        filters.apply(instances)
    return instances


def _values(expected: Target, responses: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return the value of each metric under each filter, as `evaluate` of lm-eval finds them."""
    task, instances = expected.task, _filtered(expected, responses)
    return {
        f"{metric},{key}": plain(value)
        for key in instances[0].filtered_resps
        for metric, value in task.process_results(
            expected.doc, [instance.filtered_resps[key] for instance in instances]
        ).items()
    }


def _response(instance: Any, response: Any, stop: Sequence[str]) -> Any:
    """Return what lm-eval's model gives: a text up to its stop, a document's log-probability alone."""
    if instance.request_type == "loglikelihood_rolling":
        return response[0]
    if isinstance(response, str):
        for text in stop:
            response = response.split(text)[0]
    return response


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numpy's numbers and arrays as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
