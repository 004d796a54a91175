"""README.md: the front matter by huggingface_hub's classes, and the text of users that is kept.

Our text stands between two marks, BEGIN and END; all other text and keys of an earlier card stay.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import CardData, ModelCard, ModelCardData

from dualign.evaluation.scores import ModelScores
from dualign.publish.base import Base
from dualign.publish.card.results import eval_results
from dualign.publish.sources import DataSource
from dualign.recipe_card import CardConfig

BEGIN = "<!-- dualign: every `dualign publish` rewrites the text between these marks; write outside of them -->"
END = "<!-- dualign: end -->"
RELATIONS = ("adapter", "finetune", "merge", "quantized")
_COMPUTED = ("license_name", "license_link", "base_model_relation", "model-index", "datasets")
"""Keys that are ours even if this card lacks them."""
_FRONT = re.compile(r"(?s)^\s*---.*?\n---")


@dataclass(frozen=True, kw_only=True, slots=True)
class Metadata:
    """The facts of the front matter."""

    repo_id: str
    relation: str
    bases: tuple[Base, ...]
    license: str | None
    languages: tuple[str, ...]
    sources: tuple[DataSource, ...]
    scores: ModelScores | None
    adapter: bool
    merged: bool
    task_sources: Mapping[str, Mapping[str, Any]]
    """task -> its entry of run.json's `data`"""
    wishes: CardConfig = field(default_factory=CardConfig)
    """`card:` of the recipe"""


def relation_of(bases: Sequence[Base], config: Mapping[str, Any], *, adapter: bool) -> str:
    """Return the relation of the model to its bases, by which the hub draws its model tree.

    A merge of checkpoints that all came from one model of the hub is its `finetune`; a `merge` is
    of several models of the hub.
    """
    if adapter:
        return "adapter"
    if config.get("quantization_config"):
        return "quantized"
    return "merge" if len({base.id for base in bases if base.id}) > 1 else "finetune"


def front_matter(facts: Metadata) -> ModelCardData:
    """Return the front matter, in the order of the hub's own cards."""
    base_ids = [base.id for base in facts.bases if base.id]
    datasets = list(dict.fromkeys(source.hub_id for source in facts.sources if source.hub_id))
    tags = ["dualign", "dual-mode", "reasoning", *(["lora"] if facts.adapter else [])]
    tags += ["merge"] if facts.merged else []
    tags = list(dict.fromkeys([*tags, *facts.wishes.tags]))
    results = list(eval_results(facts.scores, facts.task_sources)) if facts.scores else []
    return ModelCardData(
        license=facts.license,
        license_name=facts.wishes.license_name if facts.license == "other" else None,
        license_link=facts.wishes.license_link if facts.license == "other" else None,
        language=list(facts.languages) or None,
        base_model=base_ids[0] if len(base_ids) == 1 else base_ids or None,
        base_model_relation=facts.relation if base_ids else None,
        datasets=datasets or None,
        library_name="peft" if facts.adapter else "transformers",
        pipeline_tag="text-generation",
        tags=tags,
        model_name=facts.wishes.model_name or facts.repo_id.split("/")[-1],
        eval_results=results or None,
    )


def make_card(data: CardData, body: str, *, before: str | None) -> ModelCard:
    """Return the card with our text, and everything of the earlier card that isn't ours.

    Keys and tags of its front matter that we don't set are kept. A card without our marks was
    written by someone else: its text is kept whole, below ours.
    """
    text = f"{BEGIN}\n\n{body.strip()}\n\n{END}"
    earlier = _read(before)
    if earlier is None:
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")
    keys, earlier_keys = keys_of(data), keys_of(earlier.data)
    tags = list(dict.fromkeys([*keys.get("tags", ()), *as_list(earlier_keys.get("tags"))]))
    others = {k: v for k, v in earlier_keys.items() if k not in keys and k not in _COMPUTED}
    merged = ModelCardData(**{**keys, "tags": tags, **others}, ignore_metadata_errors=True)
    return ModelCard(f"---\n{merged.to_yaml()}\n---\n\n{_replaced(earlier.text, text)}\n")


def keys_of(data: CardData) -> dict[str, Any]:
    """Return the keys of a front matter."""
    keys: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    return keys


def _read(text: str | None) -> ModelCard | None:
    if not text or not text.strip():
        return None
    try:
        return ModelCard(text, ignore_metadata_errors=True)
    # PyYAML and the hub's class raise several kinds for a front matter that isn't one.
    except Exception:
        return ModelCard(f"---\n{{}}\n---\n{_FRONT.sub('', text, count=1)}")


def _replaced(card: str, text: str) -> str:
    """Put our text between its marks, or above a card that has none."""
    begin, end = card.find(BEGIN[:14]), card.find(END)
    if begin < 0 or end < begin:
        return f"{text}\n\n{card.strip()}".strip()
    return f"{card[:begin].lstrip()}{text}{card[end + len(END) :].rstrip()}"


def as_list(value: Any) -> list[str]:
    """Return a key that may be a text or a list as a list."""
    return [value] if isinstance(value, str) else [str(item) for item in value or ()]
