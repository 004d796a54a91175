"""A candidate -> its score: by the evaluation, on a live model; or by a command, on a folder that goes afterwards."""

import gc
import hashlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel

from dualign.checkpoints.shards import nearest_file, write_weights
from dualign.errors import EvaluationError
from dualign.evaluation.config import EvalConfig
from dualign.evaluation.evaluate import data_source, evaluate_model
from dualign.evaluation.metrics import Sample
from dualign.evaluation.requests import TaskSet
from dualign.evaluation.samples import SampleFile
from dualign.fingerprint import Digests, file_digests
from dualign.merging.merge import PreparedMerge, write_beside
from dualign.merging.output import fingerprint
from dualign.merging.sweep.config import SweepStage
from dualign.merging.sweep.live import LiveModel
from dualign.merging.sweep.score_cache import Memory
from dualign.merging.sweep.scored import Scored, scored_from
from dualign.models.loading import EvalModel
from dualign.models.tokenizer import load_chat_tokenizer
from dualign.tasks import load_problems, load_tasks

_NUMBER = re.compile(r"(?<![\w.-])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\w)")
_TAIL = 600  # characters of a command's output that an error shows


class Scoring(Protocol):
    """What gives candidates their scores."""

    data: tuple[Mapping[str, Any], ...]
    """what they were scored on, for run.json"""

    def key(self, prepared: PreparedMerge) -> str:
        """Changes when the score could."""

    def score(self, prepared: PreparedMerge, label: str) -> tuple[Scored, bool]:
        """The score, and whether it was known before."""

    def close(self) -> None:
        """Let go of memory and disk."""


def scoring_of(stage: SweepStage, work: Path, memory: Memory, *, seed: int) -> Scoring:
    """The stage's way to score. Tasks and files are read now, so that mistakes in them show at once."""
    if stage.score is not None:
        return LiveScoring(stage.score, stage.objective, work, memory, seed=seed)
    assert stage.command is not None, "checked when the recipe was read"
    return CommandScoring(stage.command, stage.files, work, memory, seed=seed)


def load_asked(settings: EvalConfig, *, seed: int) -> TaskSet:
    """The tasks with their problems."""
    tasks = load_tasks(settings.tasks)
    return [(task, load_problems(task, limit=settings.rows, seed=seed)) for task in tasks]


def plan_hash(prepared: PreparedMerge, *, seed: int) -> str:
    """Changes when the merged folder would: inputs, parameters, config, generation settings."""
    weights = prepared.weights
    beside = [file.read_text("utf-8") for file in nearest_file(weights, "generation_config.json")]
    content = [fingerprint(prepared, seed), weights.config, beside]
    return _sha256(content)


class LiveScoring:
    """The evaluation's tasks in both modes, put to one model in memory that takes each candidate's weights."""

    def __init__(
        self, settings: EvalConfig, objective: Any, work: Path, memory: Memory, *, seed: int
    ) -> None:
        self.settings, self.objective, self.seed = settings, objective, seed
        self.asked = load_asked(settings, seed=seed)
        self.data: tuple[Mapping[str, Any], ...] = tuple(
            data_source(task.rows, len(rows)) for task, rows in self.asked
        )
        tasks = [
            asdict(task) | {"rows": one["sha256"]}
            for (task, _), one in zip(self.asked, self.data, strict=True)
        ]
        self._read = _sha256([{**asdict(settings), "tasks": tasks}, seed])
        self.file = SampleFile(memory.answers)
        self._known = memory.read()
        self.folder = work / ".live"
        self.samples: dict[str, tuple[Sample, ...]] = {}
        self._kind: Any = None
        self._tokenizer: Any = None
        self._live: LiveModel | None = None

    def key(self, prepared: PreparedMerge) -> str:
        return _sha256([plan_hash(prepared, seed=self.seed), self._read])

    def score(self, prepared: PreparedMerge, label: str) -> tuple[Scored, bool]:
        self._require_alike(prepared)
        # Answers are kept under the weights that gave them, whatever else was asked.
        identity, before = plan_hash(prepared, seed=self.seed), len(self.file.answered)

        def weights() -> PreTrainedModel:
            if self._live is None:
                self._live = LiveModel(self.folder, dtype=self.settings.dtype)
            self._live.apply(prepared.weights, dtype=prepared.merge.dtype)
            return self._live.model

        subject = EvalModel(
            model=label, identity=identity, tokenizer=self._tokenizer, weights=weights
        )
        found = evaluate_model(subject, self.asked, self.settings, self.file, seed=self.seed)
        self.samples[self.key(prepared)] = found.samples
        return scored_from(found.samples, self.objective), len(self.file.answered) == before

    def _require_alike(self, prepared: PreparedMerge) -> None:
        """One model in memory serves all candidates, so they differ in their numbers alone."""
        kind = _kind(prepared)
        if self._kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_beside(prepared, self.folder)
            self._tokenizer = load_chat_tokenizer(str(self.folder))
            self._kind = kind
        if kind != self._kind:
            raise EvaluationError(
                "candidates differ in config, tokenizer, template or shapes, and one model in memory can't be all of "
                "them; vary numbers alone, or give the sweep a command, which gets each candidate written"
            )

    def close(self) -> None:
        self._live = None
        gc.collect()
        shutil.rmtree(self.folder, ignore_errors=True)


def _kind(prepared: PreparedMerge) -> Any:
    """What candidates must have in common."""
    return (
        prepared.weights.config,
        {name: one.shape for name, one in prepared.weights.entries.items()},
        prepared.models[prepared.tokenizer_source].folders,
        prepared.template,
        prepared.merge.dtype,
    )


class CommandScoring:
    """The last number that a command prints about a candidate's folder."""

    def __init__(
        self, command: str, files: tuple[str, ...], work: Path, memory: Memory, *, seed: int
    ) -> None:
        self.command, self.memory, self.seed = command, memory, seed
        self.folder = work / ".candidate"
        digests = sorted(file_digests({"files": files}, Digests()))
        self.data: tuple[Mapping[str, Any], ...] = tuple(
            {"source": name, "sha256": one, "rows": None} for name, one in digests
        )
        self._read = _sha256([command, digests])
        self._known = memory.read()

    def key(self, prepared: PreparedMerge) -> str:
        return _sha256([plan_hash(prepared, seed=self.seed), self._read])

    def score(self, prepared: PreparedMerge, label: str) -> tuple[Scored, bool]:
        known = self._known.get(self.key(prepared))
        if known is not None:
            return Scored(value=float(known["value"])), True
        self.close()
        self.folder.mkdir(parents=True)
        try:
            write_weights(prepared.weights, self.folder, dtype=prepared.merge.dtype)
            write_beside(prepared, self.folder)
            value = run_command(self.command, self.folder, label)
        finally:
            self.close()
        return Scored(value=value), False

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def run_command(command: str, folder: Path, label: str) -> float:
    """The last number on the command's standard output; its standard error goes to ours.

    Raises:
        EvaluationError: it failed, or printed no number.
    """
    text = command.replace("{model}", shlex.quote(str(folder)))
    done = subprocess.run(text, shell=True, stdout=subprocess.PIPE, text=True, check=False)
    tail = done.stdout[-_TAIL:].strip() or "nothing"
    if done.returncode:
        raise EvaluationError(
            f"{label}: the command exited with {done.returncode}: {command}\nit printed: {tail}"
        )
    found = _NUMBER.findall(done.stdout)
    if not found:
        raise EvaluationError(
            f"{label}: the command printed no number, and its last one is the score: {command}\nit printed: {tail}"
        )
    return float(found[-1])


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
