"""The rows of new tokens in a model's embedding and head: found, made, begun.

Shapes: V vocabulary, D features.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.lora import Adapter
from dualign.checkpoints.token_rows import last_token
from dualign.errors import CheckpointError
from dualign.models.new_tokens import NewRow, NewToken, add_new_tokens
from dualign.models.source import ModelSource
from dualign.models.tokenizer import read_tokenizer


def new_rows(tokens: Sequence[NewToken], source: ModelSource) -> tuple[NewRow, ...]:
    """Return the rows that new tokens take in a model, by its tokenizer."""
    return add_new_tokens(read_tokenizer(source), tokens) if tokens else ()


def give_rows(model: PreTrainedModel, rows: Sequence[NewRow]) -> None:
    """Give a model the rows of new tokens, each the mean of its pieces' rows.

    Rows that the matrix has beyond the tokenizer's tokens, such as padding to a multiple of 128, are
    taken first. A head of its own gets the mean of its own rows. The mean is taken in float32 and
    rounded to the weights' type.

    Raises:
        CheckpointError: the model has fewer rows than its tokenizer had tokens before.
    """
    needed, first = 1 + max(row.id for row in rows), min(row.id for row in rows)
    have = rows_of(model)
    if have < first:
        raise CheckpointError(
            f"{model.name_or_path}: its embedding has {have} rows and its tokenizer {first} tokens; "
            "no token can be added before each has a row: model.resize_token_embeddings in "
            "transformers, and save_pretrained"
        )
    if have < needed:
        with torch.random.fork_rng():  # the numbers it draws are overwritten below
            model.resize_token_embeddings(needed, mean_resizing=False)
    with torch.no_grad():
        for weight in _by_token(model):
            for row in rows:
                weight[row.id] = weight[list(row.pieces)].float().mean(dim=0).to(weight.dtype)


def trainable_rows(
    model: PreTrainedModel, rows: Sequence[NewRow]
) -> list[int] | dict[str, list[int]] | None:
    """Return PEFT's `trainable_token_indices` for the rows: of the embedding, and of a head of its own.

    Raises:
        CheckpointError: the head has a bias, which PEFT's layer of trainable rows leaves out.
    """
    if not rows:
        return None
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise CheckpointError(
            f"{model.name_or_path}: its head has a bias, which PEFT leaves out where it trains rows; "
            "add the tokens without lora"
        )
    ids = [row.id for row in rows]
    if _is_tied(model):
        return ids
    names = {module: name for name, module in model.named_modules()}
    return {names[embedding]: ids, names[head]: ids}


def put_rows(model: PreTrainedModel, adapter: Adapter) -> None:
    """Write the rows that an adapter trained into the weights, as its user has them."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, (indices, values) in adapter.token_rows.items():
            parameters[name][list(indices)] = values.to(parameters[name])


def require_rows(adapter: Path, have: int) -> None:
    """Refuse an adapter with rows of tokens that its base hasn't.

    Raises:
        CheckpointError: `have`, the rows of the base, are too few.
    """
    last = last_token(read_json(adapter / "adapter_config.json"))
    if last >= have:
        raise CheckpointError(
            f"{adapter}: holds the row of token {last}, and its base has {have} rows, as it was resized to train the "
            f"adapter; fold it (`dualign adapter fold {adapter} OUT`), and use that"
        )


def rows_of(model: PreTrainedModel) -> int:
    """Return how many rows the embedding has."""
    weight: Tensor = model.get_input_embeddings().weight
    return int(weight.shape[0])


def _is_tied(model: PreTrainedModel) -> bool:
    """Return whether the head's matrix is the embedding's."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _by_token(model: PreTrainedModel) -> list[Tensor]:
    """Return what has a row for each token: embedding [V, D], a head of its own [V, D], its bias [V]."""
    head = model.get_output_embeddings()
    weights = [model.get_input_embeddings().weight, *([] if _is_tied(model) else [head.weight])]
    bias = getattr(head, "bias", None)
    return [*weights, *([] if bias is None else [bias])]
