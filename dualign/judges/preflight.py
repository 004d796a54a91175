"""Why a judge of this machine can't judge, known before the first stage starts.

What an endpoint lacks, `dualign/generation/preflight.py` says for all models.
"""

from typing import Any

from dualign.errors import DualignError
from dualign.generation.config import endpoint_of
from dualign.judges.config import JudgeConfig, RewardModelConfig
from dualign.model_ref import ModelRef


def issues(stage: Any) -> list[tuple[str, str]]:
    """Return why the judge of a stage, if it has one, can't judge, as (key, message). Nothing is
    downloaded, and no weights are read.
    """
    judge: JudgeConfig | None = getattr(stage, "judge", None)
    if judge is None or not isinstance(judge.model, str) or endpoint_of(judge.model):
        return []
    if ModelRef.parse(judge.model).kind not in ("path", "embedded"):
        return []
    try:
        _require_local(judge, judge.model)
    except DualignError as error:
        return [("judge.model", str(error))]
    return []


def _require_local(judge: JudgeConfig, model: str) -> None:
    """Check a model of this machine.

    Raises:
        CheckpointError: it isn't there, has no chat template, or is no reward model.
    """
    from dualign.judges.reward_model import require_one_label
    from dualign.models.source import resolve_model
    from dualign.models.tokenizer import load_chat_tokenizer

    source = resolve_model(model)
    if isinstance(judge, RewardModelConfig):
        require_one_label(source, model)
    load_chat_tokenizer(model)
