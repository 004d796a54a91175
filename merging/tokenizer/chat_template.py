"""The chat template of the merged model, if the config names or gives one."""

from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from dualign.errors import MergeError

if TYPE_CHECKING:
    from dualign.checkpoints.checkpoint import Weights

_AUTO = "auto"
_SHIPPED = ("chatml",)
_MERGEKIT_ONLY = ("llama3", "mistral", "alpaca", "exaone")


def template_problem(value: str) -> str | None:
    """Say why a `chat_template` can't be used, as far as that shows without the models."""
    if value in (_AUTO, *_SHIPPED):
        return None
    if value in _MERGEKIT_ONLY:
        return (
            f"the template {value} isn't part of dualign; give its jinja text here, or set "
            f"tokenizer_from to a model that has it (by name there are {_AUTO}, {', '.join(_SHIPPED)})"
        )
    if "{" not in value:
        return (
            f"expected a jinja template, or {_AUTO} or {', '.join(_SHIPPED)}, found {value!r}; to take "
            "a model's, set tokenizer_from"
        )
    return None


def template_text(value: str | None, models: "Sequence[Weights]") -> str | None:
    """Return the template's text; for auto the one that most models have, as in mergekit.

    Raises:
        MergeError: auto, and two templates are the most common, or there is none.
    """
    if value in _SHIPPED:
        file = files("dualign.data") / "templates" / f"{value}.jinja"
        return file.read_text(encoding="utf-8")
    return _most_common(models) if value == _AUTO else value


def _most_common(models: "Sequence[Weights]") -> str:
    # Not at the top: numpy comes with it, and recipes load without numpy.
    from dualign.checkpoints.shards import chat_template

    texts = {str(weights.folders[0]): chat_template(weights) for weights in models}
    folders_by_text: dict[str, list[str]] = {}
    for folder, text in texts.items():
        if isinstance(text, str):
            folders_by_text.setdefault(text.strip(), []).append(folder)
    ranked = sorted(folders_by_text.values(), key=len, reverse=True)
    if not ranked:
        raise MergeError("chat_template: auto, but none of the models has a template")
    if len(ranked) > 1 and len(ranked[0]) == len(ranked[1]):
        raise MergeError(
            f"chat_template: auto, but as many models have the template of {ranked[0][0]} as that of "
            f"{ranked[1][0]}; set tokenizer_from to the model whose template is meant"
        )
    text = texts[ranked[0][0]]
    assert isinstance(text, str)
    return text
