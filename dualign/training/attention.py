"""The attention that a stage trains with: `attn_implementation: auto` spelled out.

`auto` is attention by document (`dualign`), or transformers' default where a layer of the model
can't use it; the log and `plan` say which and why.
"""

import copy
import logging
from dataclasses import replace
from typing import TypeVar

from transformers import AutoConfig, PreTrainedConfig

from dualign.attention.support import default_attention, unshareable, unsupported
from dualign.errors import CheckpointError
from dualign.models.source import ModelSource
from dualign.training.config import Attention, TrainingStage
from dualign.training.parallelism import parallelism

Stage = TypeVar("Stage", bound=TrainingStage)
_BY_DOCUMENT: Attention = "dualign"

logger = logging.getLogger(__name__)


def with_attention(stage: Stage, source: ModelSource) -> Stage:
    """Return the stage with its attention spelled out; idempotent.

    Call it before the trainer's arguments are made: under ZeRO-3 a trial model would be sharded.

    Raises:
        CheckpointError: the recipe names attention by document, and the model can't use it; or the
            processes of the launch can't share its rows.
    """
    if stage.attn_implementation not in ("auto", _BY_DOCUMENT):
        return stage
    config = AutoConfig.from_pretrained(source.base, revision=source.revision)
    settled, reason = _settled_attention(stage, config, source.base)
    if reason:
        logger.warning("%s: trains with %s attention: %s", source.base, settled, reason)
    return replace(stage, attn_implementation=settled)


def attention_in_words(
    stage: TrainingStage, config: PreTrainedConfig, model: str, *, pairs: bool
) -> tuple[Attention, str | None]:
    """Return the attention of a stage, and a line for the plan, if there is something to say.

    Raises:
        CheckpointError: as `_settled_attention`.
    """
    settled, reason = _settled_attention(stage, config, model)
    named = stage.attn_implementation != "auto"
    words = f"attention: {settled}" if named else f"attention: auto is {settled}"
    if reason:
        words += f": {reason}"
    if pairs and settled == _BY_DOCUMENT:
        return settled, f"{words}; the answers of a pair share its prompt"
    if pairs:
        shared = named and unsupported(config) is None
        hint = ", which they would share without attn_implementation" if shared else ""
        return settled, f"{words}; each answer of a pair has its prompt again{hint}"
    return settled, None if named else f"{words}" + ("" if reason else ", each document by itself")


def _settled_attention(
    stage: TrainingStage, config: PreTrainedConfig, model: str
) -> tuple[Attention, str | None]:
    """Return the attention of a stage, and why `auto` isn't attention by document, if it isn't.

    Raises:
        CheckpointError: the recipe names attention by document, and the model can't use it.
    """
    require_shareable(stage, config, model)
    if stage.attn_implementation not in ("auto", _BY_DOCUMENT):
        return stage.attn_implementation, None
    reason = unsupported(config)
    if reason is None:
        return _BY_DOCUMENT, None
    if stage.attn_implementation == _BY_DOCUMENT:
        raise CheckpointError(
            f"{model}: can't use attention by document: {reason}; remove attn_implementation"
        )
    return ("eager" if default_attention(config) == "eager" else "sdpa"), reason


def require_shareable(stage: TrainingStage, config: PreTrainedConfig, model: str) -> None:
    """Refuse a model whose rows the processes of a launch can't share.

    Raises:
        CheckpointError: its heads don't divide, or something in it needs whole rows.
    """
    parts = parallelism(stage.launch).sp_size
    router = stage.train.get("router_aux_loss_coef")  # type: ignore[attr-defined]
    if router is not None and hasattr(config.get_text_config(), "router_aux_loss_coef"):
        config = copy.deepcopy(config)
        config.get_text_config().router_aux_loss_coef = router
    if parts > 1 and (reason := unshareable(config, parts)):
        raise CheckpointError(
            f"{model}: {parts} processes can't share a row (sp_size {parts}): {reason}"
        )
