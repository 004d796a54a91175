"""Scorers of candidates: evaluation of a model in memory, or a command on a temporary folder."""

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
from dualign.evaluation.evaluate import evaluate_model, live_responder, task_source
from dualign.evaluation.requests import TaskSet
from dualign.evaluation.sampled import Sample
from dualign.fingerprint import Digests, file_digests
from dualign.generation.samples import SampleFile
from dualign.merging.merge import PreparedMerge, write_beside
from dualign.merging.output import fingerprint
from dualign.merging.sweep.candidates import CandidateScore, Objective, score_samples
from dualign.merging.sweep.config import SweepStage
from dualign.merging.sweep.live import LiveModel
from dualign.merging.sweep.score_cache import ScoreCache
from dualign.models.loading import EvalModel
from dualign.models.tokenizer import load_chat_tokenizer
from dualign.tasks.table import load_questions

_NUMBER = re.compile(r"(?<![\w.-])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\w)")
_TAIL = 600  # characters of a command's output that an error shows


class Scorer(Protocol):
    """Gives candidates their scores."""

    data: tuple[Mapping[str, Any], ...]
    """the rows and files that they are scored on, for run.json"""

    def key(self, prepared: PreparedMerge) -> str:
        """Return a hash of everything that the score depends on."""

    def score(self, prepared: PreparedMerge, label: str) -> tuple[CandidateScore, bool]:
        """Return the score, and True if all of it was in the cache."""

    def close(self) -> None:
        """Free memory and disk."""


def make_scorer(stage: SweepStage, work: Path, cache: ScoreCache, *, seed: int) -> Scorer:
    """Return the stage's scorer. Reads tasks and files, so that mistakes in them show at once."""
    if stage.score is not None:
        return LiveScorer(stage.score, stage.objective, work, cache, seed=seed)
    assert stage.command is not None, "checked when the recipe was read"
    return _CommandScorer(stage.command, stage.files, work, cache, seed=seed)


def _merge_hash(prepared: PreparedMerge, *, seed: int) -> str:
    """Hash everything that the merged folder depends on: inputs, parameters, config, settings."""
    weights = prepared.weights
    settings = [file.read_text("utf-8") for file in nearest_file(weights, "generation_config.json")]
    return _sha256([fingerprint(prepared, seed), weights.config, settings])


class LiveScorer:
    """Asks the tasks in both modes to one model in memory that takes each candidate's weights."""

    def __init__(
        self, config: EvalConfig, objective: Objective, work: Path, cache: ScoreCache, *, seed: int
    ) -> None:
        self.config, self.objective, self.seed = config, objective, seed
        self.tasks: TaskSet = load_questions(config.tasks, limit=config.rows, seed=seed)
        self.data: tuple[Mapping[str, Any], ...] = tuple(
            task_source(task, len(problems)) for task, problems in self.tasks
        )
        tasks = [
            task.settings() | {"rows": source["sha256"]}
            for (task, _), source in zip(self.tasks, self.data, strict=True)
        ]
        self._questions_hash = _sha256([{**asdict(config), "tasks": tasks}, seed])
        self.file = SampleFile(cache.answers)
        cache.read()  # a broken file shows before anything is asked
        self.folder = work / ".live"
        self.samples: dict[str, tuple[Sample, ...]] = {}
        """by key"""
        self._common: Any = None
        self._tokenizer: Any = None
        self._live: LiveModel | None = None

    def key(self, prepared: PreparedMerge) -> str:
        return _sha256([_merge_hash(prepared, seed=self.seed), self._questions_hash])

    def score(self, prepared: PreparedMerge, label: str) -> tuple[CandidateScore, bool]:
        self._require_same_model(prepared)
        # Answers are stored under the weights that gave them, whatever else was asked.
        identity, before = _merge_hash(prepared, seed=self.seed), len(self.file.answered)

        def weights() -> PreTrainedModel:
            if self._live is None:
                self._live = LiveModel(self.folder, dtype=self.config.dtype)
            self._live.apply(prepared.weights, dtype=prepared.merge.dtype)
            return self._live.model

        model = EvalModel(
            model=label, identity=identity, tokenizer=self._tokenizer, weights=weights
        )
        responder = live_responder(model, self.config)
        result = evaluate_model(responder, self.tasks, self.config, self.file, seed=self.seed)
        self.samples[self.key(prepared)] = result.samples
        return score_samples(result.samples, self.objective), len(self.file.answered) == before

    def _require_same_model(self, prepared: PreparedMerge) -> None:
        """Check that candidates differ in weights alone, as one model in memory serves all."""
        weights = prepared.weights
        common = (
            weights.config,
            {name: entry.shape for name, entry in weights.entries.items()},
            prepared.models[prepared.tokenizer_source].folders,
            prepared.template,
            prepared.merge.dtype,
        )
        if self._common is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_beside(prepared, self.folder)
            self._tokenizer = load_chat_tokenizer(str(self.folder))
            self._common = common
        if common != self._common:
            raise EvaluationError(
                "candidates differ in config, tokenizer, template or shapes, and one model in memory can't be all of "
                "them; vary numbers alone, or give the sweep a command, which gets each candidate written"
            )

    def close(self) -> None:
        self._live = None
        gc.collect()
        shutil.rmtree(self.folder, ignore_errors=True)


class _CommandScorer:
    """Takes the last number that a command prints about a candidate's folder."""

    def __init__(
        self, command: str, files: tuple[str, ...], work: Path, cache: ScoreCache, *, seed: int
    ) -> None:
        self.command, self.seed = command, seed
        self.folder = work / ".candidate"
        digests = sorted(file_digests({"files": files}, Digests()))
        self.data: tuple[Mapping[str, Any], ...] = tuple(
            {"source": name, "sha256": digest, "rows": None} for name, digest in digests
        )
        self._command_hash = _sha256([command, digests])
        self._rows = cache.read()

    def key(self, prepared: PreparedMerge) -> str:
        return _sha256([_merge_hash(prepared, seed=self.seed), self._command_hash])

    def score(self, prepared: PreparedMerge, label: str) -> tuple[CandidateScore, bool]:
        row = self._rows.get(self.key(prepared))
        if row is not None:
            return CandidateScore(value=float(row["value"])), True
        self.close()
        self.folder.mkdir(parents=True)
        try:
            write_weights(prepared.weights, self.folder, dtype=prepared.merge.dtype)
            write_beside(prepared, self.folder)
            value = run_command(self.command, self.folder, label)
        finally:
            self.close()
        return CandidateScore(value=value), False

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def run_command(command: str, folder: Path, label: str) -> float:
    """Return the last number on the command's standard output; its standard error goes to ours.

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
    numbers = _NUMBER.findall(done.stdout)
    if not numbers:
        raise EvaluationError(
            f"{label}: the command printed no number, and its last one is the score: {command}\nit printed: {tail}"
        )
    return float(numbers[-1])


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
