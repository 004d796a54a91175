"""What a row says about its loss: turns that it leaves out of it, by the names of several tools.

A weight that isn't 0 or 1 can't be honored, and is a fault.
"""

from collections.abc import Mapping
from typing import Any

from dualign.data.conversation import Role
from dualign.data.faults import RowFault
from dualign.errors import excerpt

_TRAINED = ("train", "training", "trainable", "train_on")
"""Flags of a turn of any role."""
_WEIGHTS = ("weight", "loss", "loss_weight", "loss_scale", "loss_mask")
"""Weights of an answer; other turns have them without a meaning."""
_MASKS = ("masked", "mask", "ignore", "ignore_loss")
_PARTIAL = ("train_detail", "training_detail", "train_spans")
"""Which parts of a turn are trained on."""
ROW_FLAGS = frozenset((*_TRAINED, *_WEIGHTS, "weights", *_MASKS, *_PARTIAL))
"""Columns of a row that say something of its loss."""
_FLAGS: Mapping[Any, bool] = {
    **dict.fromkeys(("true", "1", "1.0", "yes"), True),
    **dict.fromkeys(("false", "0", "0.0", "no"), False),
}


def is_trained(message: Mapping[str, Any], role: Role) -> bool:
    """Return whether none of a message's flags leaves it out of the loss.

    Raises:
        RowFault: a flag that can't be honored.
    """
    if ROW_FLAGS.isdisjoint(message):  # nearly all messages
        return True
    _refuse_partial(message)
    flags = {name: _flag(message, name) for name in (*_TRAINED, *_WEIGHTS, *_MASKS)}
    asked = next((name for name in _TRAINED if message.get(name) and flags[name]), None)
    if role != "assistant":
        if asked:
            what = f"a turn of the {role} with {asked}: only the assistant's turns can be trained"
            raise RowFault("loss_weight", what)
        return True
    return all(flags.values())


def check_row_weight(row: Mapping[str, Any]) -> None:
    """Check the columns of a row that say something of its loss.

    Raises:
        RowFault: the row is to be left out of the loss, or to weigh more or less.
    """
    if ROW_FLAGS.isdisjoint(row):
        return
    _refuse_partial(row)
    for name in (*_TRAINED, *_WEIGHTS, "weights", *_MASKS):
        try:
            trained = _flag(row, name)
        except RowFault as fault:
            what = f"{fault}; if the column {name} says something else, rename or remove it"
            raise RowFault(fault.code, what) from fault
        if not trained:
            raise RowFault(
                "no_answer", f"{name} is {excerpt(row[name])}: the row is to be left out"
            )


def _refuse_partial(item: Mapping[str, Any]) -> None:
    name = next((name for name in _PARTIAL if item.get(name)), None)
    if name is not None:
        what = f"{name} {excerpt(item[name])}: parts of a turn can't be left out of the loss"
        raise RowFault("loss_weight", what)


def _flag(item: Mapping[str, Any], name: str) -> bool:
    value = item.get(name)
    if value is None or value == "":
        return True
    flag = _FLAGS.get(str(value).strip().lower())
    if flag is None:
        what = f"{name} {excerpt(value)}: a weight of the loss other than 0 and 1 can't be honored"
        raise RowFault("loss_weight", what)
    return flag if name not in _MASKS else not flag
