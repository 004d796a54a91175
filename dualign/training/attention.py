"""The attention that a stage trains with: `attn_implementation: auto` spelled out.

`auto` is attention by document (`dualign`), or transformers' default where a layer of the model
can't use it; the log says which and why.
"""

import logging
from dataclasses import replace
from typing import TypeVar

from transformers import AutoConfig

from dualign.attention.support import unsupported
from dualign.errors import CheckpointError
from dualign.models.source import ModelSource
from dualign.training.config import Attention, TrainingStage

Stage = TypeVar("Stage", bound=TrainingStage)
_FALLBACK: Attention = "sdpa"
_BY_DOCUMENT: Attention = "dualign"

logger = logging.getLogger(__name__)


def with_attention(stage: Stage, source: ModelSource) -> Stage:
    """Return the stage with its attention spelled out; idempotent.

    Call it before the trainer's arguments are made: under ZeRO-3 a trial model would be sharded.

    Raises:
        CheckpointError: the recipe names attention by document, and the model can't use it.
    """
    if stage.attn_implementation not in ("auto", _BY_DOCUMENT):
        return stage
    reason = unsupported(AutoConfig.from_pretrained(source.base, revision=source.revision))
    if reason is None:
        return replace(stage, attn_implementation=_BY_DOCUMENT)
    if stage.attn_implementation == _BY_DOCUMENT:
        raise CheckpointError(
            f"{source.base}: can't use attention by document: {reason}; remove attn_implementation"
        )
    logger.warning("%s: trains with %s attention: %s", source.base, _FALLBACK, reason)
    return replace(stage, attn_implementation=_FALLBACK)
