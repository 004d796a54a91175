"""README.md of the repository: its metadata by huggingface_hub's classes, our text between two marks, the user's own kept."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from dualign.data.conversation import MODES
from dualign.evaluation.scores import ModelScores
from dualign.publish import licence as licences
from dualign.publish.base import Base
from dualign.publish.sources import Source

BEGIN = "<!-- dualign: what stands between these marks is made anew by every `dualign publish`; write outside of them -->"
END = "<!-- dualign: end -->"
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,4})?|code|multilingual")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
RELATIONS = ("adapter", "finetune", "merge", "quantized")


@dataclass(frozen=True, kw_only=True, slots=True)
class Metadata:
    """What the card's front matter is made of."""

    repo_id: str
    relation: str
    bases: tuple[Base, ...]
    licence: str | None
    languages: tuple[str, ...]
    sources: tuple[Source, ...]
    scores: ModelScores | None
    adapter: bool
    merged: bool
    data_names: Mapping[str, str]
    """task -> hub id of its problems, where they are from the hub"""


def relation_of(bases: Sequence[Base], config: Mapping[str, Any], *, adapter: bool) -> str:
    """What the model is to its bases: the hub draws its tree by it.

    A merge of checkpoints that all came from one model on the hub is a finetune of that one; `merge`
    is of several models of the hub.
    """
    if adapter:
        return "adapter"
    if config.get("quantization_config"):
        return "quantized"
    return "merge" if len({base.id for base in bases if base.id}) > 1 else "finetune"


def front_matter(about: Metadata) -> ModelCardData:
    """The metadata, in the order in which the hub's own cards have it."""
    named = [base.id for base in about.bases if base.id]
    datasets = list(dict.fromkeys(one.hub_id for one in about.sources if one.hub_id))
    tags = ["dualign", "dual-mode", "reasoning", *(["lora"] if about.adapter else [])]
    tags += ["merge"] if about.merged else []
    results = list(eval_results(about)) if about.scores else []
    return ModelCardData(
        license=about.licence,
        language=list(about.languages) or None,
        base_model=named[0] if len(named) == 1 else named or None,
        base_model_relation=about.relation if named else None,
        datasets=datasets or None,
        library_name="peft" if about.adapter else "transformers",
        pipeline_tag="text-generation",
        tags=tags,
        model_name=about.repo_id.split("/")[-1],
        eval_results=results or None,
    )


def eval_results(about: Metadata) -> Iterator[EvalResult]:
    """Accuracy of each task in each mode, with its 95 % interval and the number of problems."""
    scores = about.scores
    if scores is None:
        return
    for task in scores.tasks:
        for mode in MODES:
            score = scores.score(task, mode)
            if score is None:
                continue
            low, high = round(100 * score.low, 1), round(100 * score.high, 1)
            yield EvalResult(
                task_type="text-generation",
                task_name=f"{task} ({mode})",
                dataset_type=about.data_names.get(task, slug(task)),
                dataset_name=task,
                dataset_config=mode,
                metric_type="accuracy",
                metric_name=f"accuracy, {mode} (95 % interval {low} to {high}, n = {score.n})",
                metric_value=round(100 * score.accuracy, 1),
                metric_args={"mode": mode, "confidence_interval_95": [low, high], "n": score.n},
            )


def slug(text: str) -> str:
    """A name that is a file name and a dataset type everywhere."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-") or "task"


def make_card(data: ModelCardData, body: str, *, before: str | None) -> ModelCard:
    """The card with our text; of the card that is there, all that isn't ours stays.

    Keys of its front matter that we don't set stay too, and so do its tags. A card without our marks
    was written by someone else: its text stays whole, below ours.
    """
    ours = f"{BEGIN}\n\n{body.strip()}\n\n{END}"
    old = _read(before)
    if old is None:
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{ours}\n")
    mine = keys_of(data)
    theirs = {key: value for key, value in keys_of(old.data).items() if key not in mine}
    tags = list(dict.fromkeys([*mine.get("tags", ()), *(_listed(old.data.get("tags")))]))
    computed = ("license_name", "license_link", "base_model_relation", "model-index", "datasets")
    kept = {key: value for key, value in theirs.items() if key not in computed}
    merged = ModelCardData(**{**mine, "tags": tags, **kept}, ignore_metadata_errors=True)
    return ModelCard(f"---\n{merged.to_yaml()}\n---\n\n{_around(old.text, ours)}\n")


def keys_of(data: CardData) -> dict[str, Any]:
    """A card's front matter."""
    found: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    return found


_FRONT = re.compile(r"(?s)^\s*---.*?\n---")


def _read(text: str | None) -> ModelCard | None:
    if not text or not text.strip():
        return None
    try:
        return ModelCard(text, ignore_metadata_errors=True)
    # PyYAML and the hub's class raise several kinds for a front matter that isn't one.
    except Exception:
        without = _FRONT.sub("", text, count=1)
        return ModelCard(f"---\n{{}}\n---\n{without}")


def _around(text: str, ours: str) -> str:
    begin, end = text.find(BEGIN[:14]), text.find(END)
    if begin < 0 or end < begin:
        own = text.strip()
        return f"{ours}\n\n{own}" if own else ours
    return f"{text[:begin].lstrip()}{ours}{text[end + len(END) :].rstrip()}"


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value or ()]


def metadata_faults(card: ModelCard) -> Iterator[str]:
    """What the hub would refuse or not understand, as far as it can be told without it."""
    found = keys_of(card.data)
    if found.get("license") not in (
        None,
        *licences.KNOWN,
    ):  # the check on the licence says why there is none
        yield f"license: {found.get('license')!r} isn't one that the hub knows"
    for key in ("base_model", "datasets"):
        for name in _listed(found.get(key)):
            if not _REPO.fullmatch(name):
                yield f"{key}: {name!r} isn't a hub id (owner/name)"
    for code in _listed(found.get("language")):
        if not _LANGUAGE.fullmatch(code):
            yield f"language: {code!r} isn't an ISO 639 code such as en"
    if found.get("base_model") and found.get("base_model_relation") not in RELATIONS:
        yield f"base_model_relation: expected one of {', '.join(RELATIONS)}"
    if index := found.get("model-index"):
        try:
            model_index_to_eval_results(index)
        except (KeyError, TypeError, ValueError) as error:
            yield f"model-index: {error}"


def hub_fault(card: ModelCard) -> str | None:
    """What the hub's own validation says against the card; None where it passes.

    Raises:
        ConnectionError: the hub can't be asked.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError
    try:
        card.validate()
    except ValueError as error:
        return str(error).strip()
    except Exception as error:
        raise ConnectionError from error
    return None
