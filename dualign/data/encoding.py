"""Raw rows -> tokenised rows, a batch at a time and in worker processes. What can't be used comes
back as a code.

A callable for `datasets.Dataset.map`: it returns a column for each field of the row, and `code`,
which is empty for a row that is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import datasets

from dualign.data.accounting import UNKNOWN_MODE
from dualign.data.conversation import Conversation, PreferencePair
from dualign.data.draws import Indices
from dualign.data.faults import RowError
from dualign.data.settings import DataConfig, SourceConfig, Supervise
from dualign.data.sources import to_conversation, to_pair
from dualign.data.template import ChatTemplate, Rendered
from dualign.data.tokens import IGNORE_INDEX, Example, encode_batch
from dualign.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENS = datasets.List(datasets.Value("int32"))
_ABOUT = {
    "row": datasets.Value("int64"),
    "mode": datasets.Value("string"),
    "code": datasets.Value("string"),
    "tokens": datasets.Value("int64"),
    "supervised": datasets.Value("int64"),
}
Columns = dict[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What turns rows of one source into tokens. `rows` are the places in the source of the rows it
    will be given.
    """

    source: SourceConfig
    data: DataConfig
    tokenizer: "PreTrainedTokenizerBase"
    template: ChatTemplate
    rows: Indices = field(repr=False)

    def _row_of(self, batch: Mapping[str, list[Any]], at: int) -> dict[str, Any]:
        return {key: values[at] for key, values in batch.items()}

    def _fault(self, error: RowError) -> RowError:
        """The fault as a reason to leave the row out, or raised if the recipe says so."""
        policy = self.data.too_long if error.code == "too_long" else self.data.conflicts
        if policy == "error":
            raise error
        return error

    def _rendered(self, conversation: Conversation, supervise: Supervise) -> Rendered | RowError:
        try:
            return self.template.render(conversation, supervise=supervise)
        except TemplateError as error:
            if self.data.conflicts == "error":
                raise
            return RowError(
                "template",
                str(error),
                source=conversation.source,
                row=conversation.row,
                mode=conversation.mode,
            )

    def _encoded(self, rendered: list[Rendered | RowError]) -> list[Example | RowError]:
        """Each rendered row as an example; faults stay in their places."""
        limit = None if self.data.packing == "wrapped" else self.data.max_tokens
        good = [one for one in rendered if isinstance(one, Rendered)]
        made = iter(encode_batch(good, self.tokenizer, max_tokens=limit))
        return [one if isinstance(one, RowError) else next(made) for one in rendered]

    def _dropped(self, error: RowError, row: int) -> dict[str, Any]:
        source_mode = UNKNOWN_MODE if self.source.mode == "row" else self.source.mode
        mode = error.mode or source_mode
        return {"row": row, "mode": mode, "code": error.code, "tokens": 0, "supervised": 0}


@dataclass(frozen=True, kw_only=True)
class ExampleEncoder(Encoder):
    """Rows -> examples."""

    features: ClassVar[datasets.Features] = datasets.Features(
        {"input_ids": _TOKENS, "labels": _TOKENS, **_ABOUT}
    )

    def __call__(self, batch: Mapping[str, list[Any]], indices: list[int]) -> Columns:
        rows = [int(self.rows[index]) for index in indices]
        rendered = [self._render(self._row_of(batch, at), row) for at, row in enumerate(rows)]
        made = zip(self._encoded(rendered), rows, strict=True)
        return _columns([self._example(one, row) for one, row in made], self.features)

    def _render(self, raw: dict[str, Any], row: int) -> Rendered | RowError:
        supervise = self.data.supervise
        try:
            conversation = to_conversation(raw, source=self.source, index=row, supervise=supervise)
        except RowError as error:
            return self._fault(error)
        return self._rendered(conversation, supervise)

    def _example(self, made: Example | RowError, row: int) -> dict[str, Any]:
        if isinstance(made, RowError):
            return self._dropped(self._fault(made), row) | {"input_ids": [], "labels": []}
        return {
            "input_ids": made.input_ids,
            "labels": made.labels,
            "row": row,
            "mode": made.mode,
            "code": "",
            "tokens": len(made.input_ids),
            "supervised": sum(label != IGNORE_INDEX for label in made.labels),
        }


@dataclass(frozen=True, kw_only=True)
class PairEncoder(Encoder):
    """Rows -> pairs. A pair's tokens are those of its prompt and both answers."""

    features: ClassVar[datasets.Features] = datasets.Features(
        {"prompt_ids": _TOKENS, "chosen_ids": _TOKENS, "rejected_ids": _TOKENS, **_ABOUT}
    )

    def __call__(self, batch: Mapping[str, list[Any]], indices: list[int]) -> Columns:
        rows = [int(self.rows[index]) for index in indices]
        rendered: list[Rendered | RowError] = []
        for at, row in enumerate(rows):
            rendered += self._render(self._row_of(batch, at), row)
        made = self._encoded(rendered)
        both = zip(made[::2], made[1::2], rows, strict=True)
        return _columns([self._pair(*one) for one in both], self.features)

    def _render(self, raw: dict[str, Any], row: int) -> list[Rendered | RowError]:
        """Chosen and rejected, each as a conversation of its own."""
        try:
            pair = to_pair(raw, source=self.source, index=row)
        except RowError as error:
            return [self._fault(error)] * 2
        return [self._rendered(side, "last") for side in _sides(pair)]

    def _pair(
        self, chosen: Example | RowError, rejected: Example | RowError, row: int
    ) -> dict[str, Any]:
        for made in (chosen, rejected):
            if isinstance(made, RowError):
                nothing: dict[str, Any] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
                return self._dropped(self._fault(made), row) | nothing
        assert isinstance(chosen, Example) and isinstance(rejected, Example)
        prompt_ids, chosen_ids = _split(chosen)
        other_prompt, rejected_ids = _split(rejected)
        assert prompt_ids == other_prompt, (
            "encode proved that both start with the prompt's own tokens"
        )
        supervised = len(chosen_ids) + len(rejected_ids)
        return {
            "prompt_ids": prompt_ids,
            "chosen_ids": chosen_ids,
            "rejected_ids": rejected_ids,
            "row": row,
            "mode": chosen.mode,
            "code": "",
            "tokens": len(prompt_ids) + supervised,
            "supervised": supervised,
        }


def _sides(pair: PreferencePair) -> list[Conversation]:
    return [
        Conversation(
            messages=(*pair.prompt, *answer),
            mode=pair.mode,
            source=pair.source,
            row=pair.row,
            tools=pair.tools,
            template_kwargs=pair.template_kwargs,
        )
        for answer in (pair.chosen, pair.rejected)
    ]


def _split(example: Example) -> tuple[list[int], list[int]]:
    """(prompt, answer): what stands before the first supervised token, and the supervised ones."""
    first = next(at for at, label in enumerate(example.labels) if label != IGNORE_INDEX)
    answer = [label for label in example.labels[first:] if label != IGNORE_INDEX]
    return example.input_ids[:first], answer


def _columns(rows: list[dict[str, Any]], features: datasets.Features) -> Columns:
    return {name: [row[name] for row in rows] for name in features}
