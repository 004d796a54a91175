"""The chat template of the merged model, where the config says it by name."""

from collections.abc import Sequence
from importlib.resources import files

from dualign.checkpoints.checkpoint import Weights
from dualign.checkpoints.shards import chat_template
from dualign.errors import MergeError

AUTO = "auto"
OURS = ("chatml",)
ELSEWHERE = ("llama3", "mistral", "alpaca", "exaone")


def problem(value: str) -> str | None:
    """Why a `chat_template` can't be used, if that shows without the models."""
    if value in (AUTO, *OURS):
        return None
    if value in ELSEWHERE:
        return (
            f"the template {value} isn't part of dualign; give its jinja text here, or set "
            f"tokenizer_from to a model that has it (by name there are {AUTO}, {', '.join(OURS)})"
        )
    if "{" not in value:
        return (
            f"expected a jinja template, or {AUTO} or {', '.join(OURS)}, found {value!r}; to take "
            "a model's, set tokenizer_from"
        )
    return None


def text_of(value: str | None, models: Sequence[Weights]) -> str | None:
    """The template's text; auto: the one that most models have, as in mergekit.

    Raises:
        MergeError: auto, and no template is that of more models than any other.
    """
    if value in OURS:
        place = files("dualign.data") / "templates" / f"{value}.jinja"
        return place.read_text(encoding="utf-8")
    return _most_common(models) if value == AUTO else value


def _most_common(models: Sequence[Weights]) -> str:
    texts = {str(one.folders[0]): chat_template(one) for one in models}
    counts: dict[str, list[str]] = {}
    for folder, text in texts.items():
        if isinstance(text, str):
            counts.setdefault(text.strip(), []).append(folder)
    ranked = sorted(counts.values(), key=len, reverse=True)
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
