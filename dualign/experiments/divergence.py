"""How far a run's model is from its parent, on the answers that it gives itself.

KL(run || parent), as `evaluation.divergence` has it: the mean over all tokens of the answers.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualign.data.conversation import MODES
from dualign.evaluation.divergence import mean_divergence, scorer, spread, token_divergences
from dualign.evaluation.scores import short_label
from dualign.experiments.runs import Run
from dualign.model_ref import StageRef
from dualign.report.runs import StageRun
from dualign.rundir import write_json

logger = logging.getLogger(__name__)
_ANSWERS = 16  # of each mode, spread over the problems
_DIVERGENCES_JSON = ".divergences.json"


class Divergences:
    """The divergences of runs, in a file, by fingerprint of the evaluation and name of the parent."""

    def __init__(self, out: Path) -> None:
        self._file = out / _DIVERGENCES_JSON
        try:
            self._known: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}

    def of(self, run: Run, evaluation: StageRun | None, parent: str) -> dict[str, Any] | None:
        """Return `{mode: nats per token, "tokens": n, "greedy": ...}`; None without answers of the run.

        Args:
            parent: the model that the trained stage starts from, as the recipe names it.
        """
        if evaluation is None or not evaluation.metrics or not parent:
            return None
        if evaluation.metrics["model"] in evaluation.metrics.get("endpoints", {}):
            return None  # it gives no log-probabilities
        key = f"{evaluation.record['fingerprint']} {parent}"
        if key not in self._known:
            try:
                self._known[key] = _measure(run, evaluation, parent)
            except (RuntimeError, MemoryError) as error:  # other vocabularies, or no room for two
                logger.warning("%s: no KL to %s: %s", run.label, parent, error)
                return None
            write_json(self._file, self._known)
        known: dict[str, Any] = self._known[key]
        return known


def _measure(run: Run, evaluation: StageRun, parent: str) -> dict[str, Any]:
    from dualign.models.loading import open_model

    assert evaluation.metrics is not None
    config = evaluation.record["config"]
    folder = _path(run, parent)
    subject = open_model(evaluation.metrics["model"], dtype=config.get("dtype", "auto"))
    other = open_model(folder, dtype=config.get("dtype", "auto"))
    result: dict[str, Any] = {"parent": short_label(parent), "tokens": 0}
    result["temperature"] = config.get("temperature", 0.0)
    for mode in MODES:
        own = [
            (sample["rendered"], sample["generated"])
            for sample in evaluation.samples
            if sample["model"] == evaluation.metrics["model"] and sample["mode"] == mode
        ]
        scores = scorer(subject.weights()), scorer(other.weights())
        tokens: list[tuple[float, bool]] = []
        for prompt, answer in spread(own, _ANSWERS):
            read = token_divergences(*scores, subject.tokenizer, prompt, answer)
            tokens += zip(read.kl, read.agreed, strict=True)
        measured = mean_divergence(tokens)
        result[mode] = measured.kl
        result["tokens"] += measured.tokens
    return result


def _path(run: Run, parent: str) -> str:
    ref = StageRef.parse(parent)
    return parent if ref is None else str(run.status(ref.name).run_dir.resolve() / ref.path)


def in_words(entries: Sequence[Mapping[str, Any]]) -> str:
    """Name the estimator, for the legend of a table; "" if nothing was measured."""
    known = [entry["kl"] for entry in entries if entry.get("kl")]
    if not known:
        return ""
    temperature = known[0]["temperature"]
    drawn = f"drawn at temperature {temperature:g}" if temperature else "greedy"
    return (
        f"KL: nats per token of KL(run || {known[0]['parent']}) over the vocabulary, along up to "
        f"{2 * _ANSWERS} of the run's own {drawn} answers."
    )
