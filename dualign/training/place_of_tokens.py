"""Where the rows of new tokens have a place: in the weights, or in an adapter that its users can load."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dualign.checkpoints.patterns import is_named
from dualign.errors import CheckpointError
from dualign.models.new_tokens import NewRow
from dualign.models.source import ModelSource
from dualign.training.config import TrainingStage

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def require_no_other_change(targets: str | Sequence[str], model: "PreTrainedModel") -> None:
    """Refuse an adapter that changes the embedding or the head besides new rows, its own or the ones
    of the adapter that it is trained on.

    Args:
        targets: `lora.target_modules`.

    Raises:
        CheckpointError: it names one of the two.
    """
    if targets == "all-linear":
        return
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    for name, module in model.named_modules():
        if module in modules and is_named(name, targets):
            raise CheckpointError(
                f"lora.target_modules names {name}, and a matrix gets new rows or a low-rank change, "
                "not both: leave it out"
            )


def require_place(
    stage: TrainingStage, source: ModelSource, have: int, rows: Sequence[NewRow]
) -> None:
    """Refuse new tokens that the stage couldn't save.

    Args:
        have: rows of the base's embedding.

    Raises:
        CheckpointError: the start is an adapter, or the result would be one on a base without the rows.
    """
    if source.adapter is not None:
        raise CheckpointError(
            f"add_tokens: {source.adapter} is an adapter; add the tokens in the stage that trained it, or set "
            "save: merged there"
        )
    needed = 1 + max(row.id for row in rows)
    if stage.lora is None or stage.save == "merged" or needed <= have:
        return
    way_out = "set save: merged"
    if stage.quantization:
        way_out = (
            f"start from a base that has the rows (model.resize_token_embeddings({needed}) in "
            "transformers, and save_pretrained), or remove quantization and set save: merged"
        )
    raise CheckpointError(
        f"add_tokens: {source.base} has {have:,} rows and the tokens need {needed:,}; an adapter replaces "
        f"rows and adds none, so nobody could load it on this base: {way_out}"
    )
