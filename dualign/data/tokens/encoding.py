"""Raw rows -> tokenized rows, a batch at a time and in worker processes. Rows that can't be used
come back as a code.

A callable for `shards.Mapped`; it returns an Arrow table with a column for each field of the
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
from dualign.data.conversation import UNKNOWN_MODE, Conversation, RowType
from dualign.data.faults import Code, RowError
from dualign.data.policies import stops
from dualign.data.rows.padding import Structs
from dualign.data.rows.parser import Parsed, RowParser, load_row, parts_of
from dualign.data.rows.text_rules import text_rules
from dualign.data.seeds import Indices
from dualign.data.text.checks import RenderingError
from dualign.data.text.spans import RenderedRow, render_rows
from dualign.data.text.template import ChatTemplate
from dualign.data.text.truncation import within_budget, without_first_turns
from dualign.data.tokens.labels import IGNORE_INDEX, Example, Examples, encode_batch
from dualign.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PART = 250
"""Rows that are tokenized together, while the next are rendered."""
TOKENS = datasets.List(datasets.Value("int32"))
ROW_FEATURES = {
    "row": datasets.Value("int64"),
    "mode": datasets.Value("string"),
    "code": datasets.Value("string"),
    "tokens": datasets.Value("int64"),
    "supervised": datasets.Value("int64"),
    "repairs": datasets.Value("string"),
    "setting": datasets.Value("int64"),
}


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector: batches create no cycles, and each collection scans all
    of torch's objects (10 % of preparation time).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedRow:
    """A row after each step, as far as it came.

    A row is one conversation, or two that share a prompt: a pair's chosen and rejected one. Each is
    rendered as one text, or as several where the template rewrites history. `rendered` are the
    texts of all, `examples` those of each conversation.
    """

    row: int
    conversations: tuple[Conversation, ...] = ()
    rendered: tuple[RenderedRow, ...] = ()
    examples: tuple[list[Example], ...] = ()
    fault: RowError | None = None
    entry: Mapping[str, Any]
    """the row of the table that is trained on"""


Texts = list[RenderedRow] | RowError
"""The rendered texts of one conversation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingRow:
    """A row before it is tokenized, with the texts of each of its conversations."""

    row: int
    parsed: Parsed | RowError
    texts: list[Texts]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Rows of one source -> tokens.

    `rows` are the indices in the source of the rows that will come. `parsed`: they come as
    screening stored them. `structs` are the columns whose objects hold padding.
    """

    source: SourceConfig
    data: DataConfig
    tokenizer: "PreTrainedTokenizerBase"
    template: ChatTemplate
    rows: Indices = field(repr=False)
    parsed: bool = False
    structs: Structs = field(default_factory=dict, repr=False)
    row_type: ClassVar[RowType]
    features: ClassVar[datasets.Features]
    conversations_per_row: ClassVar[int]

    def __call__(self, batch: Mapping[str, list[Any]], indices: Sequence[int]) -> pa.Table:
        with gc_paused():
            encoded = self.encode(batch, self.rows[indices].tolist())
            return _to_arrow([row.entry for row in encoded], self.features)

    def encode(self, batch: Mapping[str, list[Any]], rows: list[int]) -> list[EncodedRow]:
        """Return each row of a batch of columns, with the results of all steps; `rows` are their
        indices in the source.

        The tokenizer releases the GIL, so a thread tokenizes one part of the rows while the next is
        parsed and rendered.
        """
        raw_rows = list(zip(_rows_of(batch), rows, strict=True))
        parts = []
        with ThreadPoolExecutor(max_workers=1) as tokenizing:
            for start in range(0, len(raw_rows), _PART):
                pending = [self._pending(raw, row) for raw, row in raw_rows[start : start + _PART]]
                texts = [texts for row in pending for texts in row.texts]
                parts.append((pending, tokenizing.submit(self._encode_texts, texts)))
        return [
            row for pending, examples in parts for row in self._finish(pending, examples.result())
        ]

    def _pending(self, raw: dict[str, Any], row: int) -> PendingRow:
        try:
            parsed = self._parse(raw, row)
        except RowError as error:
            error = self._check_policy(error)
            return PendingRow(row=row, parsed=error, texts=[error] * self.conversations_per_row)
        return PendingRow(row=row, parsed=parsed, texts=self._render_all(parsed))

    def _finish(
        self, pending: Sequence[PendingRow], examples: list[Examples]
    ) -> Iterator[EncodedRow]:
        for number, row in enumerate(pending):
            first = number * self.conversations_per_row
            of_row = self._compared(examples[first : first + self.conversations_per_row])
            yield EncodedRow(
                row=row.row,
                conversations=conversations_of(row.parsed),
                rendered=tuple(
                    text for texts in row.texts if not isinstance(texts, RowError) for text in texts
                ),
                examples=tuple(item for item in of_row if not isinstance(item, RowError)),
                fault=next((item for item in of_row if isinstance(item, RowError)), None),
                entry=self._entry(row, of_row),
            )

    def _parse(self, raw: dict[str, Any], row: int) -> Any:
        """Return the row in its canonical form; RowError if it is inconsistent."""
        if self.parsed:
            return load_row(raw["parsed"], source=self.source, index=row)
        return self._parser(raw, row)

    def _render_all(self, parsed: Any) -> list[Texts]:
        """Render each conversation of a row."""
        raise NotImplementedError

    def _compared(self, examples: list[Examples]) -> list[Examples]:
        """Return the examples of a row, or the fault that they have together."""
        return examples

    def _entry(self, row: PendingRow, examples: list[Examples]) -> dict[str, Any]:
        """Return the row of the table that is trained on."""
        raise NotImplementedError

    @cached_property
    def _parser(self) -> RowParser:
        return RowParser(
            source=self.source,
            supervise=self.data.supervise,
            row_type=self.row_type,
            rules=text_rules(self.tokenizer, self.template),
            structs=self.structs,
        )

    def _stops(self, code: Code) -> bool:
        default = self.data.too_long if code == "too_long" else self.data.conflicts
        return stops(code, self.source.on_fault, default=default)

    def _check_policy(self, error: RowError) -> RowError:
        """Return the fault of a row that is to be left out; raise it if the recipe stops for it."""
        if self._stops(error.code):
            raise error
        return error

    def _render(self, conversation: Conversation, supervise: Supervise) -> Texts:
        try:
            return render_rows(self.template, conversation, supervise)
        except TemplateError as error:
            code = error.code if isinstance(error, RenderingError) else "template"
            if self._stops(code):
                raise
            return RowError(
                code,
                str(error),
                source=conversation.source,
                row=conversation.row,
                mode=conversation.mode,
            )

    def _encode_texts(self, texts_of_all: list[Texts]) -> list[Examples]:
        """Return the examples of each conversation. Faults stay in their places; a fault of one
        text is its conversation's.
        """
        limit = None if self.data.packing == "wrapped" else self.data.max_tokens
        flat = [text for texts in texts_of_all if not isinstance(texts, RowError) for text in texts]
        encoded = iter(
            encode_batch(flat, self.tokenizer, max_tokens=limit, too_long=self.data.too_long)
        )
        return [
            texts
            if isinstance(texts, RowError)
            else self._fit(texts, [next(encoded) for _ in texts])
            for texts in texts_of_all
        ]

    def _fit(self, texts: list[RenderedRow], encoded: list[Example | RowError]) -> Examples:
        fitting = []
        for text, example in zip(texts, encoded, strict=True):
            result = self._shorten(text, example) if isinstance(example, RowError) else example
            if isinstance(result, RowError):
                return result
            fitting.append(result)
        return fitting

    def _shorten(self, text: RenderedRow, fault: RowError) -> Example | RowError:
        """Drop leading turns until the row fits, if it is too long and the recipe says cut_history."""
        rest = text.conversation
        if fault.code != "too_long" or self.data.too_long != "cut_history":
            return fault
        while rest is not None and (rest := without_first_turns(rest)) is not None:
            rendered = self._render(
                rest, "assistant" if self.data.supervise == "last" else self.data.supervise
            )
            if isinstance(rendered, RowError):
                return rendered
            limit = self.data.max_tokens
            example = encode_batch(rendered[-1:], self.tokenizer, max_tokens=limit)[0]
            if isinstance(example, Example):
                return replace(example, cut=True)
            if example.code != "too_long":
                return example
        return fault

    def _dropped(self, error: RowError, row: int) -> dict[str, Any]:
        """Return the entry of a row that is left out, with an empty list in each column of tokens."""
        source_mode = UNKNOWN_MODE if self.source.mode == "row" else self.source.mode
        entry: dict[str, Any] = {name: [] for name in self.features if name not in ROW_FEATURES}
        entry |= {"row": row, "mode": error.mode or source_mode, "code": error.code}
        return entry | {"repairs": "", "tokens": 0, "supervised": 0, "setting": 0}

    def _setting(self, row: PendingRow) -> int:
        """Return how the row is asked; 0 where nothing is asked."""
        conversations = conversations_of(row.parsed)
        if self.data.supervise == "all" or not conversations or conversations[0].raw is not None:
            return 0
        return self.template.setting(conversations[0])


@dataclass(frozen=True, kw_only=True)
class ExampleEncoder(Encoder):
    """Rows -> examples."""

    features: ClassVar[datasets.Features] = datasets.Features(
        {"input_ids": TOKENS, "labels": TOKENS, "parts": TOKENS, **ROW_FEATURES}
    )
    row_type = "conversation"
    conversations_per_row = 1

    def _parse(self, raw: dict[str, Any], row: int) -> Any:
        parsed = super()._parse(raw, row)
        budget = self.source.thinking_budget
        return parsed if budget is None else within_budget(parsed, budget, self._token_ends)

    def _render_all(self, parsed: Conversation) -> list[Texts]:
        return [self._render(parsed, self.data.supervise)]

    def _token_ends(self, text: str) -> list[int]:
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [stop for _, stop in tokens["offset_mapping"]]

    def _entry(self, row: PendingRow, examples: list[Examples]) -> dict[str, Any]:
        """Return the examples of a row one after the other; `parts` are their lengths."""
        (of_row,) = examples
        counted = {"mode": row.parsed.counted_mode} if isinstance(row.parsed, Conversation) else {}
        if isinstance(of_row, RowError):
            return self._dropped(self._check_policy(of_row), row.row) | counted
        labels = _concatenated([example.labels for example in of_row])
        repairs = [repairs_of(row.parsed), "split_history" if len(of_row) > 1 else ""]
        repairs.append(self.data.too_long if any(example.cut for example in of_row) else "")
        return {
            "input_ids": _concatenated([example.input_ids for example in of_row]),
            "labels": labels,
            "parts": [len(example.input_ids) for example in of_row],
            "row": row.row,
            "mode": of_row[0].mode,
            "code": "",
            "tokens": len(labels),
            "supervised": len(labels) - labels.count(IGNORE_INDEX),
            "repairs": ",".join(filter(None, repairs)),
            "setting": self._setting(row),
        } | counted


def conversations_of(parsed: Parsed | RowError) -> tuple[Conversation, ...]:
    """Return a conversation; a prompt with each of its answers, as conversations; or none."""
    if isinstance(parsed, RowError):
        return ()
    if isinstance(parsed, Conversation):
        return (parsed,)
    prompt, *answers = parts_of(parsed)
    return tuple(
        Conversation(
            messages=(*prompt, *answer),
            mode=parsed.mode,
            source=parsed.source,
            row=parsed.row,
            tools=parsed.tools,
            template_kwargs=parsed.template_kwargs,
        )
        for answer in answers
    )


def repairs_of(parsed: Parsed | RowError) -> str:
    """Return the names of a row's repairs, joined by commas."""
    return "" if isinstance(parsed, RowError) else ",".join(parsed.repairs)


def _concatenated(lists: list[list[int]]) -> list[int]:
    return lists[0] if len(lists) == 1 else [token for tokens in lists for token in tokens]


def _rows_of(batch: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    columns = [batch[key] for key in batch]
    return [dict(zip(batch, values, strict=True)) for values in zip(*columns, strict=True)]


def _to_arrow(rows: list[Mapping[str, Any]], features: datasets.Features) -> pa.Table:
    schema = features.arrow_schema
    columns = [pa.array([row[column.name] for row in rows], type=column.type) for column in schema]
    return pa.Table.from_arrays(columns, schema=schema)
