"""Why a merge stage can't run right, by the config.json that its result gets."""

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.context import stretched_config
from dualign.errors import CheckpointError
from dualign.merging.config import MergeStage
from dualign.model_ref import ModelRef


def issues(stage: MergeStage) -> list[tuple[str, str]]:
    """Return the reasons as (key, message). A model that isn't here is judged when it is merged."""
    path = ModelRef.parse(stage.config_from or stage.models[0].model).path
    if stage.context is None or path is None or not (path / "config.json").is_file():
        return []
    try:
        stretched_config(read_json(path / "config.json"), stage.context)
    except CheckpointError as error:
        return [("context", str(error).removeprefix("context: "))]
    return []
