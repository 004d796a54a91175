"""Raw rows -> tokenised rows, a batch at a time and in worker processes. What can't be used comes
back as a code.

A callable for `datasets.Dataset.map`; it returns an Arrow table with a column for each field of the
row, and `code`, which is empty for a row that is kept.
"""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import pyarrow as pa

from dualign.data.accounting import UNKNOWN_MODE
from dualign.data.conversation import Conversation, PreferencePair
from dualign.data.draws import Indices
from dualign.data.faults import Code, RowError
from dualign.data.policies import stops
from dualign.data.settings import DataConfig, SourceConfig, Supervise
from dualign.data.sources import to_conversation, to_pair
from dualign.data.spans import Rendered
from dualign.data.template import ChatTemplate
from dualign.data.text_rules import TextRules, text_rules
from dualign.data.tokens import IGNORE_INDEX, Example, encode_batch
from dualign.data.truncation import within_budget, without_first_turns
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
    "repairs": datasets.Value("string"),
}


@contextmanager
def _uncollected() -> Iterator[None]:
    """Python's search for reference cycles, of which a batch of rows makes none, looks at every
    object of torch and transformers again: a tenth of the time of preparing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A row and what became of it, as far as it came. A conversation has one side, a pair two: each is
    rendered as one text or several, and `examples` are those of the first side and of the second.
    """

    row: int
    conversations: tuple[Conversation, ...] = ()
    rendered: tuple[Rendered, ...] = ()
    examples: tuple[list[Example], ...] = ()
    fault: RowError | None = None
    entry: Mapping[str, Any]
    """the row of the table that is trained on"""


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
    features: ClassVar[datasets.Features]

    @_uncollected()
    def __call__(self, batch: Mapping[str, list[Any]], indices: list[int]) -> pa.Table:
        made = self.encode(batch, self.rows[indices].tolist())
        return _columns([one.entry for one in made], self.features)

    def encode(self, batch: Mapping[str, list[Any]], rows: list[int]) -> list[Encoded]:
        """Each row of a batch of columns, with all that was made of it on the way; `rows` are their
        places in the source.
        """
        raise NotImplementedError

    @cached_property
    def _rules(self) -> TextRules:
        return text_rules(self.tokenizer, self.template)

    def _stops(self, code: Code) -> bool:
        default = self.data.too_long if code == "too_long" else self.data.conflicts
        return stops(code, self.source.on_fault, default=default)

    def _fault(self, error: RowError) -> RowError:
        """The fault as a reason to leave the row out, or raised if the recipe says so."""
        if self._stops(error.code):
            raise error
        return error

    def _rendered(
        self, conversation: Conversation, supervise: Supervise
    ) -> list[Rendered] | RowError:
        try:
            return self.template.render_rows(conversation, supervise=supervise)
        except TemplateError as error:
            if self._stops("template"):
                raise
            return RowError(
                "template",
                str(error),
                source=conversation.source,
                row=conversation.row,
                mode=conversation.mode,
            )

    def _encoded(self, rendered: list[list[Rendered] | RowError]) -> list[list[Example] | RowError]:
        """The examples of each row; faults stay in their places, and one of an example is its row's."""
        limit = None if self.data.packing == "wrapped" else self.data.max_tokens
        flat = [part for parts in rendered if not isinstance(parts, RowError) for part in parts]
        made = iter(
            encode_batch(flat, self.tokenizer, max_tokens=limit, too_long=self.data.too_long)
        )
        return [
            parts
            if isinstance(parts, RowError)
            else self._fitting(parts, [next(made) for _ in parts])
            for parts in rendered
        ]

    def _fitting(
        self, parts: list[Rendered], made: list[Example | RowError]
    ) -> list[Example] | RowError:
        fitting = []
        for part, one in zip(parts, made, strict=True):
            found = self._shortened(part, one) if isinstance(one, RowError) else one
            if isinstance(found, RowError):
                return found
            fitting.append(found)
        return fitting

    def _shortened(self, part: Rendered, fault: RowError) -> Example | RowError:
        """A row that is too long without as many of its first turns as need be."""
        left = part.conversation
        if fault.code != "too_long" or self.data.too_long != "cut_history":
            return fault
        while left is not None and (left := without_first_turns(left)) is not None:
            rendered = self._rendered(
                left, "assistant" if self.data.supervise == "last" else self.data.supervise
            )
            if isinstance(rendered, RowError):
                return rendered
            limit = self.data.max_tokens
            made = encode_batch(rendered[-1:], self.tokenizer, max_tokens=limit)[0]
            if isinstance(made, Example):
                return replace(made, cut=True)
            if made.code != "too_long":
                return made
        return fault

    def _dropped(self, error: RowError, row: int) -> dict[str, Any]:
        source_mode = UNKNOWN_MODE if self.source.mode == "row" else self.source.mode
        mode = error.mode or source_mode
        about = {"row": row, "mode": mode, "code": error.code, "repairs": ""}
        return about | {"tokens": 0, "supervised": 0}


@dataclass(frozen=True, kw_only=True)
class ExampleEncoder(Encoder):
    """Rows -> examples."""

    features: ClassVar[datasets.Features] = datasets.Features(
        {"input_ids": _TOKENS, "labels": _TOKENS, "parts": _TOKENS, **_ABOUT}
    )

    def encode(self, batch: Mapping[str, list[Any]], rows: list[int]) -> list[Encoded]:
        read = [self._read(*one) for one in zip(_rows_of(batch), rows, strict=True)]
        rendered = [
            one if isinstance(one, RowError) else self._rendered(one, self.data.supervise)
            for one in read
        ]
        steps = zip(rows, read, rendered, self._encoded(rendered), strict=True)
        return [
            Encoded(
                row=row,
                conversations=() if isinstance(one, RowError) else (one,),
                rendered=() if isinstance(texts, RowError) else tuple(texts),
                examples=() if isinstance(made, RowError) else (made,),
                fault=made if isinstance(made, RowError) else None,
                entry=self._example(made, one, row),
            )
            for row, one, texts, made in steps
        ]

    def _read(self, raw: dict[str, Any], row: int) -> Conversation | RowError:
        try:
            read = to_conversation(
                raw,
                source=self.source,
                index=row,
                supervise=self.data.supervise,
                rules=self._rules,
            )
        except RowError as error:
            return self._fault(error)
        budget = self.source.thinking_budget
        return read if budget is None else within_budget(read, budget, self._ends)

    def _ends(self, text: str) -> list[int]:
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [stop for _, stop in tokens["offset_mapping"]]

    def _example(
        self, made: list[Example] | RowError, read: Conversation | RowError, row: int
    ) -> dict[str, Any]:
        """The examples of a row behind one another; `parts` are their lengths."""
        if isinstance(made, RowError):
            nothing: dict[str, Any] = {"input_ids": [], "labels": [], "parts": []}
            return self._dropped(self._fault(made), row) | nothing
        labels = _joined([one.labels for one in made])
        repairs = [_repairs(read), "split_history" if len(made) > 1 else ""]
        repairs.append(self.data.too_long if any(one.cut for one in made) else "")
        return {
            "input_ids": _joined([one.input_ids for one in made]),
            "labels": labels,
            "parts": [len(one.input_ids) for one in made],
            "row": row,
            "mode": made[0].mode,
            "code": "",
            "tokens": len(labels),
            "supervised": len(labels) - labels.count(IGNORE_INDEX),
            "repairs": ",".join(filter(None, repairs)),
        }


@dataclass(frozen=True, kw_only=True)
class PairEncoder(Encoder):
    """Rows -> pairs. A pair's tokens are those of its prompt and both answers."""

    features: ClassVar[datasets.Features] = datasets.Features(
        {"prompt_ids": _TOKENS, "chosen_ids": _TOKENS, "rejected_ids": _TOKENS, **_ABOUT}
    )

    def encode(self, batch: Mapping[str, list[Any]], rows: list[int]) -> list[Encoded]:
        read = [self._read(*one) for one in zip(_rows_of(batch), rows, strict=True)]
        rendered = [side for one in read for side in self._both(one)]
        made = self._encoded(rendered)
        texts_of_both = zip(rendered[::2], rendered[1::2], strict=True)
        made_of_both = zip(made[::2], made[1::2], strict=True)
        steps = zip(rows, read, texts_of_both, made_of_both, strict=True)
        return [
            Encoded(
                row=row,
                conversations=() if isinstance(one, RowError) else tuple(_sides(one)),
                rendered=tuple(
                    text for side in texts if not isinstance(side, RowError) for text in side
                ),
                examples=tuple(side for side in both if not isinstance(side, RowError)),
                fault=next((side for side in both if isinstance(side, RowError)), None),
                entry=self._pair(*both, one, row),
            )
            for row, one, texts, both in steps
        ]

    def _read(self, raw: dict[str, Any], row: int) -> PreferencePair | RowError:
        try:
            return to_pair(raw, source=self.source, index=row, rules=self._rules)
        except RowError as error:
            return self._fault(error)

    def _both(self, read: PreferencePair | RowError) -> list[list[Rendered] | RowError]:
        """Chosen and rejected, each as a conversation of its own."""
        if isinstance(read, RowError):
            return [read, read]
        return [self._rendered(side, "last") for side in _sides(read)]

    def _pair(
        self,
        chosen: list[Example] | RowError,
        rejected: list[Example] | RowError,
        read: PreferencePair | RowError,
        row: int,
    ) -> dict[str, Any]:
        for made in (chosen, rejected):
            if isinstance(made, RowError):
                nothing: dict[str, Any] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
                return self._dropped(self._fault(made), row) | nothing
        assert isinstance(chosen, list) and isinstance(rejected, list)
        prompt_ids, chosen_ids = _split(chosen[0])
        other_prompt, rejected_ids = _split(rejected[0])
        assert prompt_ids == other_prompt, (
            "encode proved that both start with the prompt's own tokens"
        )
        supervised = len(chosen_ids) + len(rejected_ids)
        return {
            "prompt_ids": prompt_ids,
            "chosen_ids": chosen_ids,
            "rejected_ids": rejected_ids,
            "row": row,
            "mode": chosen[0].mode,
            "code": "",
            "tokens": len(prompt_ids) + supervised,
            "supervised": supervised,
            "repairs": _repairs(read),
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


def _repairs(read: Conversation | PreferencePair | RowError) -> str:
    """The names of a row's repairs, joined by commas."""
    return "" if isinstance(read, RowError) else ",".join(read.repairs)


def _split(example: Example) -> tuple[list[int], list[int]]:
    """(prompt, answer): what stands before the first supervised token, and the supervised ones."""
    first = next(at for at, label in enumerate(example.labels) if label != IGNORE_INDEX)
    answer = [label for label in example.labels[first:] if label != IGNORE_INDEX]
    return example.input_ids[:first], answer


def _joined(lists: list[list[int]]) -> list[int]:
    return lists[0] if len(lists) == 1 else [one for each in lists for one in each]


def _rows_of(batch: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    columns = [batch[key] for key in batch]
    return [dict(zip(batch, values, strict=True)) for values in zip(*columns, strict=True)]


def _columns(rows: list[Mapping[str, Any]], features: datasets.Features) -> pa.Table:
    schema = features.arrow_schema
    columns = [pa.array([row[one.name] for row in rows], type=one.type) for one in schema]
    return pa.Table.from_arrays(columns, schema=schema)
