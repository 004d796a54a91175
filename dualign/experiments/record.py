"""The result of an experiment: experiment.json, with all figures that table and plots show."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from dualign.data.conversation import MODES
from dualign.errors import EvaluationError
from dualign.evaluation.scores import Change, mean_of, short_label
from dualign.experiments.comparison import Answers, answers_of, compare
from dualign.experiments.divergence import Divergences, in_words
from dualign.experiments.halving import RungValues, rung_key
from dualign.experiments.measures import beta_of, measured
from dualign.experiments.runs import Experiment, Run, short_keys
from dualign.experiments.sentences import sentences
from dualign.recipe import StageEntry
from dualign.report.runs import StageRun, read_stage, series
from dualign.rundir import RUN_JSON
from dualign.stages import stage_kind

Record = dict[str, Any]
_SCHEMA = 1


def experiment_record(
    experiment: Experiment,
    failures: Mapping[str, str],
    stopped: Mapping[str, int],
    rungs: RungValues,
) -> Record:
    """Return the content of experiment.json.

    Args:
        failures: run -> why it failed.
        stopped: run -> the rung after which it was stopped.
    """
    divergences = Divergences(experiment.output_dir)
    results = [
        _Result(experiment, run, failures.get(run.name, ""), stopped.get(run.name))
        for run in experiment.runs
    ]
    settings = _settings(experiment, results)
    best = _best_run(experiment, settings, results)
    entries = [
        result.entry(rungs, divergences, best=None if best is None else results[best])
        for result in results
    ]
    for index, entry in enumerate(entries):
        entry["front"] = _is_on_front(index, entries)
    halving = experiment.config.halving
    short = short_keys(experiment.config.vary)
    record = {
        "schema": _SCHEMA,
        "name": experiment.name,
        "recipe": str(experiment.recipe_file),
        "vary": {key: short[key] for key in experiment.config.vary},
        "score": experiment.score.name,
        "lower_is_better": experiment.score.lower,
        "parent": short_label(results[0].parent) if results[0].parent else "",
        "metric": experiment.metric.name if experiment.metric else None,
        "rungs": [*halving.rungs] if halving else [],
        "best": best,
        "settings": settings,
        "runs": entries,
        "curve": _curve_name(experiment, results[0].shown),
        "kl": in_words(entries),
        "seconds": round(sum(_own_seconds(results)), 1),
    }
    return {**record, "says": sentences(record)}


def _shown_stage(experiment: Experiment) -> str:
    """Return the training stage whose held-out metrics are shown; "" if none trains.

    It is that of halving or of the score, else the last one that differs between runs, preference
    stages first.
    """
    kinds = {entry.name: stage_kind(entry.kind) for entry in experiment.runs[0].recipe.stages}
    training = [name for name, kind in kinds.items() if kind.trains]
    halving = experiment.config.halving
    for name in (halving.stage if halving else "", experiment.score.stage):
        if name in training:
            return name
    differing = [name for name in training if _differs(experiment, name)] or training
    pairs = [name for name in differing if kinds[name].takes_pairs] or differing
    return pairs[-1] if pairs else ""


def _differs(experiment: Experiment, stage: str) -> bool:
    return len({run.status(stage).fingerprint for run in experiment.runs}) > 1


class _Result:
    """What a run has left, read once."""

    def __init__(self, experiment: Experiment, run: Run, failure: str, stopped: int | None) -> None:
        self.experiment, self.run, self.failure, self.stopped = experiment, run, failure, stopped
        shown = _shown_stage(experiment)
        self.shown = run.recipe.stage(shown) if shown else None
        self.parent = str(self.shown.config.model) if self.shown else ""
        self.stages = [
            read_stage(status.run_dir)
            for status in run.statuses
            if (status.run_dir / RUN_JSON).is_file()
        ]
        self.finished = len(self.stages) == len(run.statuses) and not failure and stopped is None
        self.value = self._value() if self.finished else None
        evaluated = [stage for stage in self.stages if stage.metrics is not None]
        self.evaluation = evaluated[-1] if evaluated and self.finished else None
        self.metrics: Mapping[str, Any] = {}
        self.answers: Answers = {}
        if self.evaluation and self.evaluation.metrics:
            self.metrics = self.evaluation.metrics
            self.answers = answers_of(self.evaluation.samples, self.metrics["model"])

    def _value(self) -> float:
        score = self.experiment.score
        status = self.run.status(score.stage)
        return measured(score, status.entry, status.run_dir)

    @property
    def state(self) -> str:
        if self.failure:
            return "failed"
        return "finished" if self.finished else f"stopped at {self.stopped}"

    def entry(
        self, rungs: RungValues, divergences: Divergences, *, best: "_Result | None"
    ) -> dict[str, Any]:
        """Return the run's part of experiment.json."""
        return {
            "name": self.run.name,
            "folder": str(self.run.recipe.output_dir),
            "label": self.run.label,
            "point": dict(self.run.point),
            "state": self.state,
            "failure": self.failure,
            "best": self is best,
            "value": self.value,
            "modes": self._modes(),
            "tasks": self.metrics.get("tasks", {}),
            "against_parent": self._against(self._parent_answers()),
            "against_best": self._against(best.answers) if best and self is not best else {},
            "held_out": self._held_out(rungs),
            "kl": divergences.of(self.run, self.evaluation, self.parent),
            "curve": self._curve(rungs),
            "seconds": round(sum(float(s.record.get("seconds") or 0) for s in self.stages), 1),
            "stages": {s.name: s.record["fingerprint"] for s in self.stages},
        }

    def _modes(self) -> dict[str, Any]:
        """Return the accuracy in each mode, the mean of the tasks, and the form of the answers."""
        tasks = self.metrics.get("tasks", {}).values()
        # A perplexity is no accuracy.
        shares = [cells for cells in tasks if cells["think"]["accuracy"] is not None]
        modes = MODES if shares else ()
        return {mode: _mode([cells[mode] for cells in shares]) for mode in modes}

    def _parent_answers(self) -> Answers:
        """Return what the parent answered in this run's evaluation; {} if it wasn't asked."""
        if self.evaluation is None or not self.parent:
            return {}
        label = short_label(self.parent)
        models = [entry["model"] for entry in self.metrics["all"]]
        same = [model for model in models[:-1] if short_label(model) == label]
        return answers_of(self.evaluation.samples, same[0]) if same else {}

    def _against(self, before: Answers) -> dict[str, Any]:
        comparisons = {mode: compare(before, self.answers, mode) for mode in MODES}
        return {mode: both.entry() for mode, both in comparisons.items() if both}

    def _at_the_last_rung(self, entry: StageEntry | None, rungs: RungValues) -> dict[str, Any]:
        """Return the metric of a run that was stopped, if it is one of the table."""
        metric = self.experiment.metric
        if entry is None or metric is None or metric.stage != entry.name:
            return {}
        points = rungs.of(rung_key(self.run, entry.name, metric))
        return {metric.key: points[-1][1]} if points and metric.key in ("margin", "loss") else {}

    def _held_out(self, rungs: RungValues) -> dict[str, Any]:
        """Return the last held-out metrics of the trained stage, rewards in nats."""
        entry = self.shown
        stage = next((s for s in self.stages if entry and s.name == entry.name), None)
        if entry is None or stage is None:
            return self._at_the_last_rung(entry, rungs)
        validation = (stage.record.get("metrics") or {}).get("validation") or {}
        beta = beta_of(entry.config)
        names = {"margin": "margins", "chosen": "chosen", "rejected": "rejected"}
        figures = {
            name: validation[f"eval_rewards/{key}"] / beta
            for name, key in names.items()
            if f"eval_rewards/{key}" in validation
        }
        plain = {"loss": "eval_loss", "accuracy": "eval_rewards/accuracies"}
        return figures | {n: validation[key] for n, key in plain.items() if key in validation}

    def _curve(self, rungs: RungValues) -> list[tuple[int, float]]:
        """Return (step, held-out metric) of the shown stage: as logged, and at the rungs."""
        entry = self.shown
        if entry is None:
            return []
        metric = self.experiment.metric
        points: dict[int, float] = {}
        stage = next((s for s in self.stages if s.name == entry.name), None)
        key, scale = _curve_key(self.experiment, entry)
        if stage is not None:
            points = {step: value / scale for step, value in series(stage.log, key)}
        if metric and metric.stage == entry.name:
            points |= dict(rungs.of(rung_key(self.run, entry.name, metric)))
        return sorted(points.items())


def _curve_name(experiment: Experiment, entry: StageEntry | None) -> str:
    """Return what the curves show, with its unit: `apo: held-out margin, nats`."""
    if entry is None:
        return ""
    key, _ = _curve_key(experiment, entry)
    name = key.removeprefix("eval_")
    if name.startswith("rewards/margins"):
        name = f"margin{name.removeprefix('rewards/margins')}, nats"
    return f"{entry.name}: held-out {name}"


def _curve_key(experiment: Experiment, entry: StageEntry) -> tuple[str, float]:
    """Return the logged key that the curves show, and what it is divided by."""
    metric = experiment.metric
    key = metric.key if metric and metric.stage == entry.name else ""
    if not key:
        key = "margin" if stage_kind(entry.kind).takes_pairs else "loss"
    if key.startswith("margin"):
        return f"eval_rewards/margins{key.removeprefix('margin')}", beta_of(entry.config)
    return f"eval_{key}", 1.0


def _mode(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shares = (cell for cell in cells if cell["accuracy"] is not None)  # a perplexity has none
    parts = [Change.of(cell["accuracy"], cell["accuracy_ci"]) for cell in shares]
    if not parts:
        raise EvaluationError(
            "no task of the eval stage has an accuracy, by which runs are compared; add one that has"
        )
    accuracy = mean_of(parts)

    def mean(name: str) -> float | None:
        values = [cell[name] for cell in cells if cell.get(name) is not None]
        return fmean(values) if values else None

    return {
        "accuracy": accuracy.value,
        "accuracy_ci": [accuracy.low, accuracy.high],
        "n": sum(cell["n"] for cell in cells),
        "think_tokens": fmean(cell["think_tokens"]["mean"] for cell in cells),
        "answer_tokens": fmean(cell["answer_tokens"]["mean"] for cell in cells),
        "closed_rate": mean("closed_rate"),
        "leak_rate": mean("leak_rate"),
    }


def _settings(experiment: Experiment, results: Sequence[_Result]) -> list[dict[str, Any]]:
    """Return the settings with the mean of their seeds; `runs` are indices."""
    groups: dict[str, list[int]] = {}
    for index, result in enumerate(results):
        groups.setdefault(result.run.setting, []).append(index)
    settings = []
    for indices in groups.values():
        values = [v for i in indices if (v := results[i].value) is not None]
        settings.append(
            {
                "runs": indices,
                "seeds": len(indices),
                "value": fmean(values) if values else None,
                "spread": stdev(values) if len(values) > 1 else None,
            }
        )
    return settings


def _best_run(
    experiment: Experiment, settings: Sequence[Mapping[str, Any]], results: Sequence[_Result]
) -> int | None:
    """Return the best run of the setting whose mean over its seeds is best; None if none finished."""
    better = experiment.score.better
    scored = [setting for setting in settings if setting["value"] is not None]
    if not scored:
        return None
    best = max(scored, key=lambda setting: round(better(setting["value"]), 12))
    values: dict[int, float] = {i: v for i in best["runs"] if (v := results[i].value) is not None}
    return max(values, key=lambda i: round(better(values[i]), 12))


def _is_on_front(index: int, entries: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether no other run is better in one mode and as good in the other."""
    points = [
        tuple(e["modes"][mode]["accuracy"] for mode in MODES) if e["modes"] else () for e in entries
    ]
    own = points[index]
    return bool(own) and not any(
        other != own and all(a >= b for a, b in zip(other, own, strict=True))
        for other in points
        if other
    )


def _own_seconds(results: Sequence[_Result]) -> Iterator[float]:
    """Yield the time of each stage once, in however many runs it is."""
    seen: set[tuple[str, str]] = set()
    for result in results:
        for stage in result.stages:
            key = _identity(stage)
            if key not in seen:
                seen.add(key)
                yield float(stage.record.get("seconds") or 0)


def _identity(stage: StageRun) -> tuple[str, str]:
    return stage.name, str(stage.record["fingerprint"])
