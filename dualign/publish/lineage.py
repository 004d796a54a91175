"""What a run directory was made from: the stages above it, the models it started from, how it was measured."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Root:
    """A model that no stage made, as the recipe named it."""

    reference: str
    revision: str | None
    output: Path | None = None
    """where the stages are, if it is one of them"""

    def folder(self) -> Path | None:
        """Where its weights lie on this machine; None for a hub id."""
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
        """Whether it can't be found by that name anywhere else."""
        return self.ref.is_local


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """A run directory and all that it came from."""

    run: StageRun
    stages: tuple[StageRun, ...]
    """the stages above the run in the order they ran, and the run itself last"""
    evaluations: tuple[StageRun, ...]
    """the evaluation stages beside it that measured it"""
    problems: tuple[StageRun, ...] = ()
    """the evaluation stages beside it, of whatever model: those of it first"""
    faults: tuple[str, ...] = ()
    """stages that are no longer there, or are no longer what the run was made from"""

    @property
    def output(self) -> Path:
        """The pipeline's output directory."""
        return self.run.path.parent

    @property
    def training(self) -> tuple[StageRun, ...]:
        return tuple(stage for stage in self.stages if stage_kind(stage.kind).trains)

    @property
    def is_adapter(self) -> bool:
        return (self.run.path / "adapter_config.json").is_file()

    @property
    def quantised(self) -> bool:
        """Whether an adapter was trained on a base in 4 bits."""
        return any(stage.record["config"].get("quantization") for stage in self.training)

    def roots(self) -> tuple[Root, ...]:
        """Every model that the run started from, each once."""
        found: dict[str, Root] = {}
        for stage in self.stages:
            for reference, revision in _models_of(stage):
                if reference and not StageRef.parse(reference):
                    found.setdefault(reference, Root(reference=reference, revision=revision))
        return tuple(found.values())


def adapter_root(lineage: Lineage, adapter: Path) -> Root:
    """The base of an adapter of the run, as the lineage knows it; it may be a stage's weights.

    A base that isn't on this machine any more is taken for the model that the recipe starts from.

    Raises:
        PublishError: the adapter doesn't name its base.
    """
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
    is_adapter = (path / "adapter_config.json").is_file()  # a fault, which the checks tell
    if path.is_dir() and path.resolve().parent == lineage.output and not is_adapter:
        return Root(reference=f"stage:{path.name}", revision=None, output=lineage.output)
    gone = Root(reference=base.name, revision=base.revision)
    return roots[0] if roots and gone.is_local and (is_adapter or not path.is_dir()) else gone


def read_lineage(run_dir: Path) -> Lineage:
    """The lineage of a finished stage of a pipeline.

    Raises:
        PublishError: the folder isn't a stage's run directory, or holds no model.
        CheckpointError: a run.json or a log can't be read.
    """
    run_dir = run_dir.resolve()
    if not (run_dir / RUN_JSON).is_file():
        raise PublishError(_no_run(run_dir))
    run = _recorded(run_dir)
    if not stage_kind(run.kind).makes_model:
        beside = ", ".join(
            one.name for one in _siblings(run_dir) if stage_kind(one.kind).makes_model
        )
        raise PublishError(
            f"{run_dir}: a stage of kind {run.kind} leaves no model; publish one of: {beside or 'none'}"
        )
    stages: dict[str, StageRun] = {}
    faults: list[str] = []
    _collect(run, stages, faults)
    measured = [one for one in _siblings(run_dir) if stage_kind(one.kind).evaluates]
    evaluations = [one for one in measured if run.name in (one.record.get("parents") or {})]
    faults += _outdated(run, evaluations)
    others = [one for one in measured if one not in evaluations]
    return Lineage(
        run=run,
        stages=tuple(stages.values()),
        evaluations=tuple(evaluations),
        problems=(*evaluations, *others),
        faults=tuple(faults),
    )


def _no_run(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder; expected a stage's run directory, such as runs/quickstart/merged"
    inside = sorted(one.parent.name for one in folder.glob(f"*/{RUN_JSON}"))
    hint = f"; its stages are {', '.join(inside)}: name one of them" if inside else ""
    return (
        f"{folder}: has no {RUN_JSON}, so nothing is known of how it was made; expected the run "
        f"directory of a stage that `dualign run` finished{hint}"
    )


def _collect(stage: StageRun, found: dict[str, StageRun], faults: list[str]) -> None:
    for name, fingerprint in (stage.record.get("parents") or {}).items():
        if name in found:
            continue
        parent = _read(stage.path.parent / name, stage, str(fingerprint), faults)
        if parent:
            _collect(parent, found, faults)
    found[stage.name] = stage


def _read(path: Path, child: StageRun, fingerprint: str, faults: list[str]) -> StageRun | None:
    if not (path / RUN_JSON).is_file():
        faults.append(f"{child.name} was made from {path.name}, and {path} isn't there any more")
        return None
    parent = _recorded(path)
    if parent.record.get("fingerprint") != fingerprint:
        faults.append(
            f"{path.name} was run again after {child.name} was made from it; run the pipeline again"
        )
    return parent


def _siblings(run_dir: Path) -> Iterator[StageRun]:
    for path in sorted(run_dir.parent.iterdir()):
        if path != run_dir and not path.name.startswith(".") and (path / RUN_JSON).is_file():
            yield _recorded(path)


def _recorded(path: Path) -> StageRun:
    """A stage whose run.json has what is read from it here."""
    stage = read_stage(path)
    kinds = {"config": dict, "parents": dict, "fingerprint": str}
    wrong = [key for key, kind in kinds.items() if not isinstance(stage.record.get(key), kind)]
    if wrong:
        raise PublishError(
            f"{path / RUN_JSON}: {', '.join(wrong)} isn't there as `dualign run` writes it; run the stage again"
        )
    return stage


def _outdated(run: StageRun, evaluations: Sequence[StageRun]) -> Iterator[str]:
    for one in evaluations:
        if one.record["parents"][run.name] != run.record.get("fingerprint"):
            yield (
                f"{one.name} measured an earlier {run.name}: its figures aren't of these weights; "
                "run the pipeline again"
            )


def _models_of(stage: StageRun) -> Iterator[tuple[str, str | None]]:
    config: Mapping[str, Any] = stage.record.get("config") or {}
    if stage_kind(stage.kind).trains:
        yield _split(str(config.get("model") or ""), config.get("revision"))
    if stage_kind(stage.kind).merges:
        yield from map(_split, _named_in(config))


def _named_in(value: Any) -> Iterator[str]:
    """Every model that a merge names, at whatever depth."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            if key in ("model", "base_model") and isinstance(one, str):
                yield one
            else:
                yield from _named_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from _named_in(one)


def _split(reference: str, revision: str | None = None) -> tuple[str, str | None]:
    """The reference without the revision that it may name itself (ID@REVISION), and the revision."""
    ref = ModelRef.parse(reference, revision=revision)
    return (ref.name, ref.revision) if ref.kind == "hub" and ref.is_plain else (reference, revision)
