"""An evaluated model that a command line names: a folder of an evaluation, a run, or RUN:MODEL."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dualign.errors import CheckpointError, EvaluationError
from dualign.evaluation.scores import short_label
from dualign.report.runs import ModelEvaluation, StageRun, evaluations_of, read_evaluation
from dualign.rundir import RUN_JSON

_METRICS = "metrics.json"
_EXPECTED = (
    "expected the folder of an evaluation (metrics.json, samples.jsonl), a run with evaluation stages, a "
    "model's folder in such a run, or RUN:MODEL"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """A model with its answers, and the evaluations that they are from."""

    folder: Path
    model: ModelEvaluation
    stages: tuple[StageRun, ...]

    @property
    def name(self) -> str:
        """The model's name in tables."""
        return short_label(self.model.scores.model)


def read_side(reference: str | Path) -> Side:
    """Read the model that `reference` names; without a name, the last one that was evaluated.

    Raises:
        CheckpointError: no such folder, nothing evaluated there, or files that are damaged.
        EvaluationError: no such model, or its answers aren't there.
    """
    folder, name = _split(str(reference))
    folders = tuple(_evaluations(folder))
    if not folders and name is None and (folder / RUN_JSON).is_file():
        folders, name = tuple(_evaluations(folder.absolute().parent)), folder.absolute().name
    if not folders:
        raise CheckpointError(f"{folder}: nothing was evaluated there; {_EXPECTED}")
    stages = tuple(sorted(map(read_evaluation, folders), key=_order))
    models = evaluations_of(stages)
    model = _named(models, name, folder)
    if not model.samples:
        raise EvaluationError(
            f"{reference}: the answers of {short_label(model.scores.model)} aren't there; models are "
            "compared problem by problem, from samples.jsonl beside metrics.json"
        )
    return Side(folder=folder, model=model, stages=stages)


def _split(reference: str) -> tuple[Path, str | None]:
    """Split RUN:MODEL; both may hold colons, so RUN is the first folder that is there."""
    if Path(reference).is_dir():
        return Path(reference), None
    places = [place for place, character in enumerate(reference) if character == ":"]
    for place in places:
        if place and Path(reference[:place]).is_dir():
            return Path(reference[:place]), reference[place + 1 :]
    raise CheckpointError(f"{reference}: no such folder; {_EXPECTED}")


def _evaluations(folder: Path) -> Iterator[Path]:
    """Yield the folder if an evaluation wrote it, else those of its stages that evaluated."""
    if (folder / _METRICS).is_file():
        yield folder
        return
    for file in sorted(folder.glob(f"*/{_METRICS}")):
        if (file.parent / RUN_JSON).is_file():
            yield file.parent


def _order(stage: StageRun) -> tuple[str, str]:
    return str(stage.record.get("started") or ""), stage.name


def _named(models: Sequence[ModelEvaluation], name: str | None, folder: Path) -> ModelEvaluation:
    if name is None:
        return models[-1]
    for model in models:
        if name in (model.scores.model, short_label(model.scores.model)):
            return model
    names = ", ".join(short_label(model.scores.model) for model in models)
    raise EvaluationError(
        f"{folder}: no model {name!r} was evaluated there; expected one of {names}"
    )
