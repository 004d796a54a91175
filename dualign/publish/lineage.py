"""The lineage of a run directory: parent stages, the models they started from, evaluations."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.embedded import embedded_model
from dualign.errors import CheckpointError, PublishError
from dualign.model_ref import ModelRef, StageRef, adapter_base
from dualign.report.runs import StageRun, read_stage
from dualign.rundir import RUN_JSON
from dualign.stages import stage_kind

_QUESTIONS = ("What is 7 + 5?", "Which is larger, 8 or 13?")
"""Asked if no evaluation stage has problems of its own."""
_MAX_QUESTIONS = 3
_ANSWER_TOKENS = 256  # unless the evaluation allowed fewer or more


@dataclass(frozen=True, kw_only=True, slots=True)
class Root:
    """A model that no stage made, as the recipe named it."""

    reference: str
    revision: str | None
    output: Path | None = None
    """the pipeline's output directory, if the model is one of its stages"""

    def folder(self) -> Path | None:
        """Return the folder of its weights on this machine; None for a hub id."""
        if self.ref.kind == "embedded":
            return embedded_model(self.reference)
        if self.ref.stage and self.output:
            return self.output / self.ref.stage.label
        return self.ref.path and self.ref.path.resolve()

    @property
    def ref(self) -> ModelRef:
        return ModelRef.parse(self.reference, revision=self.revision)

    @property
    def is_local(self) -> bool:
        """True if nobody else can find it by that name."""
        return self.ref.is_local


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """A run directory and the stages that it came from."""

    run: StageRun
    stages: tuple[StageRun, ...]
    """its ancestors in the order they ran, and the run itself last"""
    evaluations: tuple[StageRun, ...]
    """the evaluation stages of the pipeline that measured it"""
    problems: tuple[StageRun, ...] = ()
    """all evaluation stages of the pipeline, those that measured it first"""
    faults: tuple[str, ...] = ()
    """ancestors that are gone or were run again, evaluations that are outdated"""

    @property
    def output(self) -> Path:
        """The pipeline's output directory."""
        return self.run.path.parent

    @property
    def training(self) -> tuple[StageRun, ...]:
        return tuple(stage for stage in self.stages if stage_kind(stage.kind).trains)

    @property
    def adapter_folder(self) -> Path | None:
        """The run's adapter: at the top, or in adapter/ next to folded weights."""
        for folder in (self.run.path, self.run.path / "adapter"):
            if (folder / "adapter_config.json").is_file():
                return folder
        return None

    @property
    def is_adapter(self) -> bool:
        return (self.run.path / "adapter_config.json").is_file()

    @property
    def quantized(self) -> bool:
        """True if an adapter was trained on a base in 4 bits."""
        return any(stage.record["config"].get("quantization") for stage in self.training)

    def roots(self) -> tuple[Root, ...]:
        """Return every model that the run started from, each once."""
        roots: dict[str, Root] = {}
        for stage in self.stages:
            for reference, revision in _models_of(stage):
                if reference and not StageRef.parse(reference):
                    roots.setdefault(reference, Root(reference=reference, revision=revision))
        return tuple(roots.values())

    def writers(self) -> Iterator[str | Mapping[str, Any]]:
        """Yield what wrote rows that the run was trained on, as recipes name it; stages left out."""
        for stage in self.stages:
            config: Mapping[str, Any] = stage.record.get("config") or {}
            if not stage_kind(stage.kind).generates_rows:
                continue
            reviser = (config.get("revise") or {}).get("model")
            for model in (config.get("model"), config.get("rejected_model"), reviser):
                if model and not (isinstance(model, str) and StageRef.parse(model)):
                    yield model

    def questions(self) -> tuple[list[str], int]:
        """Return the first problem of each task of the evaluations, and the tokens of an answer."""
        for stage in self.problems:
            prompts: dict[str, str] = {}
            for sample in stage.samples:
                prompts.setdefault(str(sample.get("task")), str(sample.get("prompt") or ""))
            questions = [prompt for prompt in prompts.values() if prompt][:_MAX_QUESTIONS]
            if questions:
                config: Mapping[str, Any] = stage.record.get("config") or {}
                return questions, int(config.get("max_new_tokens") or _ANSWER_TOKENS)
        return plain_questions()


def plain_questions() -> tuple[list[str], int]:
    """Return questions that any model can be asked, and the tokens of an answer."""
    return list(_QUESTIONS), _ANSWER_TOKENS


def adapter_root(lineage: Lineage) -> Root:
    """Return the base of the run's adapter as the lineage names it; it may be a stage's weights.

    A base that is gone from this machine is taken for the model that the recipe starts from.

    Raises:
        PublishError: the adapter doesn't name its base.
    """
    adapter = lineage.adapter_folder or lineage.run.path
    try:
        base = adapter_base(adapter, read_json(adapter / "adapter_config.json"))
    except CheckpointError as error:
        raise PublishError(
            f"{error}: without it nobody can load the adapter; or run the stage again"
        ) from None
    roots, path = lineage.roots(), Path(base.name)
    for root in roots:
        if base.text == root.reference or (path.is_dir() and root.folder() == path.resolve()):
            return root
    is_adapter = (path / "adapter_config.json").is_file()  # a fault that the checks report
    if path.is_dir() and path.resolve().parent == lineage.output and not is_adapter:
        return Root(reference=f"stage:{path.name}", revision=None, output=lineage.output)
    gone = Root(reference=base.name, revision=base.revision)
    return roots[0] if roots and gone.is_local and (is_adapter or not path.is_dir()) else gone


def read_lineage(run_dir: Path) -> Lineage:
    """Read the lineage of a finished stage of a pipeline.

    Raises:
        PublishError: the folder isn't a stage's run directory, or holds no model.
        CheckpointError: a run.json or a log can't be read.
    """
    run = _stage_of(run_dir)
    run_dir = run.path
    if not stage_kind(run.kind).makes_model:
        publishable = [s.name for s in _siblings(run_dir) if stage_kind(s.kind).makes_model]
        raise PublishError(
            f"{run_dir}: a stage of kind {run.kind} leaves no model; publish one of: {', '.join(publishable) or 'none'}"
        )
    stages: dict[str, StageRun] = {}
    faults: list[str] = []
    _collect(run, stages, faults)
    measured = [s for s in _siblings(run_dir) if stage_kind(s.kind).evaluates]
    evaluations = [s for s in measured if run.name in (s.record.get("parents") or {})]
    faults += _outdated(run, evaluations)
    return Lineage(
        run=run,
        stages=tuple(stages.values()),
        evaluations=tuple(evaluations),
        problems=(*evaluations, *(s for s in measured if s not in evaluations)),
        faults=tuple(faults),
    )


def read_rows_lineage(run_dir: Path) -> Lineage:
    """Read the lineage of a finished stage whose rows a model wrote.

    Raises:
        PublishError: the folder isn't a stage's run directory.
        CheckpointError: a run.json or a log can't be read.
    """
    run = _stage_of(run_dir)
    stages: dict[str, StageRun] = {}
    faults: list[str] = []
    _collect(run, stages, faults)
    return Lineage(run=run, stages=tuple(stages.values()), evaluations=(), faults=tuple(faults))


def _stage_of(run_dir: Path) -> StageRun:
    run_dir = run_dir.resolve()
    if not (run_dir / RUN_JSON).is_file():
        raise PublishError(_no_run(run_dir))
    return _read_run(run_dir)


def _no_run(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder; expected a stage's run directory, such as runs/quickstart/merged"
    inside = sorted(file.parent.name for file in folder.glob(f"*/{RUN_JSON}"))
    hint = f"; its stages are {', '.join(inside)}: name one of them" if inside else ""
    return (
        f"{folder}: has no {RUN_JSON}, so nothing is known of how it was made; expected the run "
        f"directory of a stage that `dualign run` finished{hint}"
    )


def _collect(stage: StageRun, stages: dict[str, StageRun], faults: list[str]) -> None:
    """Add the stage's ancestors to `stages` in the order they ran, then the stage."""
    for name, fingerprint in (stage.record.get("parents") or {}).items():
        if name in stages:
            continue
        parent = _read_parent(stage.path.parent / name, stage, str(fingerprint), faults)
        if parent:
            _collect(parent, stages, faults)
    stages[stage.name] = stage


def _read_parent(
    path: Path, child: StageRun, fingerprint: str, faults: list[str]
) -> StageRun | None:
    if not (path / RUN_JSON).is_file():
        faults.append(f"{child.name} was made from {path.name}, and {path} isn't there any more")
        return None
    parent = _read_run(path)
    if parent.record.get("fingerprint") != fingerprint:
        faults.append(
            f"{path.name} was run again after {child.name} was made from it; run the pipeline again"
        )
    return parent


def _siblings(run_dir: Path) -> Iterator[StageRun]:
    for path in sorted(run_dir.parent.iterdir()):
        if path != run_dir and not path.name.startswith(".") and (path / RUN_JSON).is_file():
            yield _read_run(path)


def _read_run(path: Path) -> StageRun:
    """Read a stage, and refuse a run.json without the keys that are read from it."""
    stage = read_stage(path)
    kinds = {"config": dict, "parents": dict, "fingerprint": str}
    wrong = [key for key, kind in kinds.items() if not isinstance(stage.record.get(key), kind)]
    if wrong:
        raise PublishError(
            f"{path / RUN_JSON}: {', '.join(wrong)} isn't there as `dualign run` writes it; run the stage again"
        )
    return stage


def _outdated(run: StageRun, evaluations: Sequence[StageRun]) -> Iterator[str]:
    for evaluation in evaluations:
        if evaluation.record["parents"][run.name] != run.record.get("fingerprint"):
            yield (
                f"{evaluation.name} measured an earlier {run.name}: its figures aren't of these weights; "
                "run the pipeline again"
            )


def _models_of(stage: StageRun) -> Iterator[tuple[str, str | None]]:
    config: Mapping[str, Any] = stage.record.get("config") or {}
    if stage_kind(stage.kind).trains:
        yield _split(str(config.get("model") or ""), config.get("revision"))
    if stage_kind(stage.kind).merges:
        yield from map(_split, _named_in(config))


def _named_in(value: Any) -> Iterator[str]:
    """Yield every model that a merge names, at whatever depth."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if key in ("model", "base_model") and isinstance(entry, str):
                yield entry
            else:
                yield from _named_in(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _named_in(entry)


def _split(reference: str, revision: str | None = None) -> tuple[str, str | None]:
    """Split a revision off a reference that may name one itself (ID@REVISION)."""
    ref = ModelRef.parse(reference, revision=revision)
    return (ref.name, ref.revision) if ref.kind == "hub" and ref.is_plain else (reference, revision)
