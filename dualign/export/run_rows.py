"""What the run of a model says about its rows: those it was trained on, and the tasks it was asked.

Read from run.json of the model's stage and of the stages beside it. A model that no run made has
neither.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dualign.model_ref import ModelRef, StageRef
from dualign.rundir import read_run
from dualign.stages import stage_kind


def training_record(model: str) -> tuple[Path, Mapping[str, Any]] | None:
    """Return folder and run.json of the last SFT stage that the model comes from; None without one."""
    folder = _run_folder(model)
    waiting, seen = ([folder] if folder else []), set[Path]()
    while waiting:
        stage = waiting.pop(0)
        record = read_run(stage)
        if record.get("kind") == "sft":
            return stage, record
        seen.add(stage)
        parents = [stage.parent / name for name in record.get("parents") or ()]
        waiting += [parent for parent in parents if parent not in seen and parent not in waiting]
    return None


def evaluations(model: str) -> Iterator[Mapping[str, Any]]:
    """Yield the settings of the evaluation stages beside the model that asked it, the last first."""
    folder = _run_folder(model)
    if folder is None:
        return
    records = [(other, read_run(other)) for other in _beside(folder)]
    records.sort(key=lambda item: str(item[1].get("started", "")), reverse=True)
    for other, record in records:
        if stage_kind(str(record.get("kind"))).evaluates and folder.name in (
            record.get("parents") or ()
        ):
            yield in_run(record.get("config") or {}, other)


def in_run(value: Any, stage: Path) -> Any:
    """Return settings of run.json with the files of other stages in place of `stage:NAME/file`."""
    if isinstance(value, Mapping):
        return {key: in_run(item, stage) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [in_run(item, stage) for item in value]
    ref = StageRef.parse(value) if isinstance(value, str) else None
    return value if ref is None else str(stage.parent / ref.name / ref.path)


def _run_folder(model: str) -> Path | None:
    path = ModelRef.parse(model).path
    folder = path.resolve() if path is not None else None
    return folder if folder is not None and read_run(folder) else None


def _beside(folder: Path) -> list[Path]:
    return sorted(other for other in folder.parent.iterdir() if other.is_dir())
