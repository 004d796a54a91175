"""Raw rows -> tokenised rows, a batch at a time and in worker processes. What can't be used comes
back as a code.

A callable for `datasets.Dataset.map`; it returns an Arrow table with a column for each field of the
row, and `code`, which is empty for a row that is kept.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import pyarrow as pa

from dualign.data.config import DataConfig, SourceConfig, Supervise
from dualign.data.conversation import UNKNOWN_MODE, Conversation, PreferencePair
from dualign.data.faults import Code, RowError
from dualign.data.policies import stops
from dualign.data.rows.sources import to_conversation, to_pair
from dualign.data.rows.text_rules import TextRules, text_rules
from dualign.data.seeds import Indices
from dualign.data.text.spans import Rendered, render_rows
from dualign.data.text.template import ChatTemplate
from dualign.data.text.truncation import within_budget, without_first_turns
from dualign.data.tokens.labels import IGNORE_INDEX, Example, encode_batch
from dualign.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PART = 250
"""Rows that are tokenised together, while the next are rendered."""
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
    """A row and what became of it, as far as it came. A conversation has one side, a pair two: `rendered`
    are the texts of all, `examples` those of the first side and of the second.
    """

    row: int
    conversations: tuple[Conversation, ...] = ()
    rendered: tuple[Rendered, ...] = ()
    examples: tuple[list[Example], ...] = ()
    fault: RowError | None = None
    entry: Mapping[str, Any]
    """the row of the table that is trained on"""


Sides = list[list[Rendered] | RowError]
"""A conversation has one side, a pair two; each is rendered as one text or several."""
Made = list[list[Example] | RowError]
"""The examples of each side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draft:
    """A row before it is tokenised."""

    row: int
    read: Conversation | PreferencePair | RowError
    sides: Sides


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
    sides: ClassVar[int]

    @_uncollected()
    def __call__(self, batch: Mapping[str, list[Any]], indices: list[int]) -> pa.Table:
        made = self.encode(batch, self.rows[indices].tolist())
        return _columns([one.entry for one in made], self.features)

    def encode(self, batch: Mapping[str, list[Any]], rows: list[int]) -> list[Encoded]:
        """Each row of a batch of columns, with all that was made of it on the way; `rows` are their
        places in the source.

        The tokenizer works outside the interpreter, so a thread tokenises one part of the rows
        while the next is read and rendered.
        """
        given = list(zip(_rows_of(batch), rows, strict=True))
        parts = []
        with ThreadPoolExecutor(max_workers=1) as tokenising:
            for start in range(0, len(given), _PART):
                drafts = [self._draft(raw, row) for raw, row in given[start : start + _PART]]
                sides = [side for draft in drafts for side in draft.sides]
                parts.append((drafts, tokenising.submit(self._encoded, sides)))
        return [one for drafts, made in parts for one in self._finished(drafts, made.result())]

    def _draft(self, raw: dict[str, Any], row: int) -> _Draft:
        try:
            read = self._read(raw, row)
        except RowError as error:
            read = self._fault(error)
        if isinstance(read, RowError):
            return _Draft(row=row, read=read, sides=[read] * self.sides)
        return _Draft(row=row, read=read, sides=self._rendered_sides(read))

    def _finished(self, drafts: Sequence[_Draft], made: Made) -> Iterator[Encoded]:
        for number, draft in enumerate(drafts):
            sides = made[number * self.sides : (number + 1) * self.sides]
            yield Encoded(
                row=draft.row,
                conversations=_conversations(draft.read),
                rendered=tuple(
                    text for side in draft.sides if not isinstance(side, RowError) for text in side
                ),
                examples=tuple(side for side in sides if not isinstance(side, RowError)),
                fault=next((side for side in sides if isinstance(side, RowError)), None),
                entry=self._entry(draft, sides),
            )

    def _read(self, raw: dict[str, Any], row: int) -> Any:
        """The row in its canonical form; RowError if it contradicts itself."""
        raise NotImplementedError

    def _rendered_sides(self, read: Any) -> Sides:
        raise NotImplementedError

    def _entry(self, draft: _Draft, sides: Made) -> dict[str, Any]:
        """The row of the table that is trained on."""
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
            return render_rows(self.template, conversation, supervise)
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

    def _encoded(self, rendered: Sides) -> Made:
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

    sides = 1

    def _read(self, raw: dict[str, Any], row: int) -> Conversation:
        read = to_conversation(
            raw, source=self.source, index=row, supervise=self.data.supervise, rules=self._rules
        )
        budget = self.source.thinking_budget
        return read if budget is None else within_budget(read, budget, self._ends)

    def _rendered_sides(self, read: Conversation) -> Sides:
        return [self._rendered(read, self.data.supervise)]

    def _ends(self, text: str) -> list[int]:
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [stop for _, stop in tokens["offset_mapping"]]

    def _entry(self, draft: _Draft, sides: Made) -> dict[str, Any]:
        """The examples of a row behind one another; `parts` are their lengths."""
        (made,) = sides
        if isinstance(made, RowError):
            nothing: dict[str, Any] = {"input_ids": [], "labels": [], "parts": []}
            return self._dropped(self._fault(made), draft.row) | nothing
        labels = _joined([one.labels for one in made])
        repairs = [_repairs(draft.read), "split_history" if len(made) > 1 else ""]
        repairs.append(self.data.too_long if any(one.cut for one in made) else "")
        return {
            "input_ids": _joined([one.input_ids for one in made]),
            "labels": labels,
            "parts": [len(one.input_ids) for one in made],
            "row": draft.row,
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

    sides = 2

    def _read(self, raw: dict[str, Any], row: int) -> PreferencePair:
        return to_pair(raw, source=self.source, index=row, rules=self._rules)

    def _rendered_sides(self, read: PreferencePair) -> Sides:
        return [self._rendered(side, "last") for side in _conversations(read)]

    def _entry(self, draft: _Draft, sides: Made) -> dict[str, Any]:
        chosen, rejected = sides
        for made in (chosen, rejected):
            if isinstance(made, RowError):
                nothing: dict[str, Any] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
                return self._dropped(self._fault(made), draft.row) | nothing
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
            "row": draft.row,
            "mode": chosen[0].mode,
            "code": "",
            "tokens": len(prompt_ids) + supervised,
            "supervised": supervised,
            "repairs": _repairs(draft.read),
        }


def _conversations(read: Conversation | PreferencePair | RowError) -> tuple[Conversation, ...]:
    """A conversation; chosen and rejected, each as a conversation of its own; or none."""
    if isinstance(read, RowError):
        return ()
    if isinstance(read, Conversation):
        return (read,)
    return tuple(
        Conversation(
            messages=(*read.prompt, *answer),
            mode=read.mode,
            source=read.source,
            row=read.row,
            tools=read.tools,
            template_kwargs=read.template_kwargs,
        )
        for answer in (read.chosen, read.rejected)
    )


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
