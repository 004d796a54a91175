"""config.json of the model that a stage starts from, as the stages before it leave it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.context import stretched_config
from dualign.cost.model_shape import config_file
from dualign.engine import StageStatus
from dualign.errors import CheckpointError, ConfigError
from dualign.model_ref import ModelRef, StageRef
from dualign.recipe import StageEntry
from dualign.training.config import TrainingStage
from dualign.training.positions import position_notes, why_not_by_longest


def model_config(
    entry: StageEntry, statuses: Sequence[StageStatus], folder: Path
) -> dict[str, Any]:
    """Return config.json of a stage's model, with the positions that it and the stages before give it.

    `{}` if the model that the pipeline starts from isn't here.

    Raises:
        ConfigError: a `context` on the way can't be.
    """
    reference = _start(entry.config)
    parent = StageRef.parse(reference)
    status = parent and next(item for item in statuses if item.entry.name == parent.name)
    if parent is None or status is None:
        config = _saved(reference, folder)
    elif status.state == "done":
        config = _saved(str(status.run_dir.resolve() / parent.path), folder)
    else:
        config = model_config(status.entry, statuses, folder)
    context = getattr(entry.config, "context", None)
    if not config or context is None:
        return config
    try:
        return stretched_config(config, context)
    except CheckpointError as error:
        raise ConfigError(f"stage {entry.name}: {error}") from None


def stretched_model(
    status: StageStatus, statuses: list[StageStatus], folder: Path
) -> dict[str, Any]:
    """Return config.json of the model of a stage that has yet to train or to stretch it; {} for others.

    Raises:
        ConfigError: a `context` can't be.
    """
    config = status.entry.config
    asked = isinstance(config, TrainingStage) or getattr(config, "context", None)
    return model_config(status.entry, statuses, folder) if asked and status.state != "done" else {}


def positions_in_words(
    entry: StageEntry, model: Mapping[str, Any], rows: Mapping[str, Any] | None
) -> list[str]:
    """Return what the plan says of a stage's positions.

    Raises:
        ConfigError: it can't train with the model's rotary type.
    """
    if not isinstance(entry.config, TrainingStage) or not model:
        return []
    if reason := why_not_by_longest(entry.config, model):
        raise ConfigError(f"stage {entry.name}: {reason}")
    return position_notes(entry.config, model, rows)


def _start(config: Any) -> str:
    """Return the reference of the model whose config.json a stage starts from; "" if there is none."""
    models = getattr(config, "models", ())
    first = str(getattr(models[0], "model", "")) if models else ""
    own = getattr(config, "model", None)
    return own if isinstance(own, str) else getattr(config, "config_from", None) or first


def _saved(reference: str, folder: Path) -> dict[str, Any]:
    plain = bool(reference) and ModelRef.parse(reference).is_plain
    file = config_file(reference, folder, []) if plain else None
    return read_json(file) if file else {}
