"""RenderedRow -> Example: the text tokenized once, and the tokens that the model has to produce.

Two things are checked for every supervised turn. No token may cross a span's edge. And the prompt
alone must tokenize to exactly the ids that the row starts with: at inference the model continues
those, so a row that joins the end of the prompt and the start of the answer into one token would
train something that never happens.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING

from dualign.data.config import TooLong
from dualign.data.conversation import Mode
from dualign.data.faults import Code, RowError
from dualign.data.text.spans import RenderedRow, Span
from dualign.data.tokens.added_tokens import AddedTokenAligner, added_token_aligner
from dualign.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
_Offsets = list[tuple[int, int]]
"""(start, stop) characters of each token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A tokenized row. `spans` are the (first, stop) tokens that are supervised; `cut`: the
    recipe's `too_long` shortened it.
    """

    input_ids: list[int]
    spans: tuple[Span, ...]
    mode: Mode
    source: str
    row: int
    cut: bool = False

    @property
    def labels(self) -> list[int]:
        """An entry for each token: the token itself where it is supervised, or IGNORE_INDEX."""
        labels = [IGNORE_INDEX] * len(self.input_ids)
        for first, stop in self.spans:
            labels[first:stop] = self.input_ids[first:stop]
        return labels

    def prompt_and_answer(self) -> tuple[list[int], list[int]]:
        """Return the tokens before the only supervised turn, and those of the turn."""
        ((first, stop),) = self.spans
        return self.input_ids[:first], self.input_ids[first:stop]


Examples = list[Example] | RowError
"""The examples of one conversation."""


def encode_batch(
    rendered: Sequence[RenderedRow],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_tokens: int | None,
    too_long: TooLong = "error",
) -> list[Example | RowError]:
    """Return an example for each row, or its fault. `max_tokens=None`: any length.

    With `cut_end` a row of more tokens loses its end, unless that is inside a supervised trace.

    Raises:
        CheckpointError: the tokenizer has no offsets.
    """
    if not rendered:
        return []
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{type(tokenizer).__name__} can't tell where in the text its tokens are. "
            "Expected a fast tokenizer: one with a tokenizer.json."
        )
    examples: list[Example | RowError | None] = [None] * len(rendered)
    aligner = added_token_aligner(tokenizer)
    if aligner is not None:
        encodings = _encodings([row.text for row in rendered], tokenizer, offsets=False)
        examples = [
            _by_added_tokens(aligner, row, encoding.ids, max_tokens)
            for row, encoding in zip(rendered, encodings, strict=True)
        ]
    rest = [index for index, example in enumerate(examples) if example is None]
    slow = _by_offsets([rendered[index] for index in rest], tokenizer, max_tokens, too_long)
    for index, example in zip(rest, slow, strict=True):
        examples[index] = example
    return [example for example in examples if example is not None]


def identical_pair(chosen: Examples, rejected: Examples) -> RowError | None:
    """Return the fault of a pair whose answers differ only in what the template trims."""
    if isinstance(chosen, RowError) or isinstance(rejected, RowError):
        return None
    if [example.input_ids for example in chosen] != [example.input_ids for example in rejected]:
        return None
    what = "chosen and rejected are the same tokens under this template"
    first = chosen[0]
    return RowError("identical_pair", what, source=first.source, row=first.row, mode=first.mode)


def _by_added_tokens(
    aligner: AddedTokenAligner, rendered: RenderedRow, ids: list[int], max_tokens: int | None
) -> Example | None:
    """Return the example; None if the row is too long or its spans aren't certain."""
    if max_tokens is not None and len(ids) > max_tokens:
        return None
    if rendered.spans == ((0, len(rendered.text)),):
        return _example(rendered, ids, [(0, len(ids))])
    spans = aligner.token_spans(rendered.text, rendered.spans, ids)
    return _example(rendered, ids, spans) if spans else None


def _by_offsets(
    rendered: Sequence[RenderedRow],
    tokenizer: "PreTrainedTokenizerBase",
    max_tokens: int | None,
    too_long: TooLong,
) -> list[Example | RowError]:
    """Return the examples, or their faults, from the offsets of every token."""
    if not rendered:
        return []
    encodings = _encodings([row.text for row in rendered], tokenizer, offsets=True)
    offsets = [encoding.offsets for encoding in encodings]
    examples = [
        _align(row, encoding.ids, row_offsets)
        for row, encoding, row_offsets in zip(rendered, encodings, offsets, strict=True)
    ]
    checked = _check_prompts(rendered, examples, offsets, tokenizer)
    for row, example in enumerate(checked):
        if isinstance(example, RowError) and _may_come_in_pieces(rendered[row]):
            pieces, offsets[row] = _align_in_pieces(rendered[row], tokenizer, example)
            (checked[row],) = _check_prompts([rendered[row]], [pieces], [offsets[row]], tokenizer)
    if max_tokens is None:
        return checked
    return [
        _fit(row, example, row_offsets, max_tokens, too_long)
        for row, example, row_offsets in zip(rendered, checked, offsets, strict=True)
    ]


def _encodings(
    texts: list[str], tokenizer: "PreTrainedTokenizerBase", *, offsets: bool
) -> list["Encoding"]:
    """Tokenize each text alone and whole, as calling the tokenizer does, without its copies."""
    backend = tokenizer.backend_tokenizer
    # Only where there is any: another thread may be tokenizing, and then nothing can be set.
    if backend.padding is not None:
        backend.no_padding()
    if backend.truncation is not None:
        backend.no_truncation()
    encode = backend.encode_batch if offsets else backend.encode_batch_fast
    encodings: list[Encoding] = encode(texts, add_special_tokens=False)
    return encodings


def _example(rendered: RenderedRow, ids: list[int], spans: Sequence[Span]) -> Example:
    return Example(
        input_ids=ids,
        spans=tuple(spans),
        mode=rendered.mode,
        source=rendered.source,
        row=rendered.row,
    )


def _fit(
    rendered: RenderedRow,
    example: Example | RowError,
    offsets: _Offsets,
    max_tokens: int,
    too_long: TooLong,
) -> Example | RowError:
    if isinstance(example, RowError) or len(example.input_ids) <= max_tokens:
        return example
    excess = f"{len(example.input_ids)} tokens, max_tokens is {max_tokens}"
    if not too_long.startswith("cut_end"):
        return _fault(rendered, "too_long", excess)
    edge = offsets[max_tokens][0]
    if too_long == "cut_end" and any(start <= edge < stop for start, stop in rendered.traces):
        return _fault(rendered, "too_long", f"{excess}, and the cut would be inside a think block")
    spans = tuple(
        (first, min(stop, max_tokens)) for first, stop in example.spans if first < max_tokens
    )
    if not spans:
        return _fault(rendered, "too_long", f"{excess}, and nothing supervised is before the cut")
    return replace(example, input_ids=example.input_ids[:max_tokens], spans=spans, cut=True)


def _align(rendered: RenderedRow, ids: list[int], offsets: _Offsets) -> Example | RowError:
    """Return the row's spans in tokens, or the fault that a token crosses an edge."""
    if rendered.spans == ((0, len(rendered.text)),):
        return _example(rendered, ids, [(0, len(ids))])
    if not rendered.spans:
        return _fault(rendered, "no_answer", "nothing in the row is supervised")
    spans = []
    for start, stop in rendered.spans:
        first, last = (bisect_left(offsets, edge, key=itemgetter(0)) for edge in (start, stop))
        crossed = [
            edge
            for token, edge in ((first, start), (last, stop))
            if token and offsets[token - 1][1] > edge
        ]
        if crossed or first == last or offsets[last - 1][1] != stop:
            edge = crossed[0] if crossed else stop
            return _fault(
                rendered, "boundary", f"no token starts and ends at {_near(rendered.text, edge)}"
            )
        spans.append((first, last))
    return _example(rendered, ids, spans)


def _may_come_in_pieces(rendered: RenderedRow) -> bool:
    """Return whether a span starts with white space, after white space of its prompt, or after a
    trace that a budget closed: whoever generates gives the closing, as tokens of its own.
    """
    text, conversation = rendered.text, rendered.conversation
    if conversation is not None and any(message.cut for message in conversation.messages):
        return True
    return any(start and text[start - 1 : start + 1].isspace() for start, _ in rendered.spans)


def _align_in_pieces(
    rendered: RenderedRow, tokenizer: "PreTrainedTokenizerBase", fault: RowError
) -> tuple[Example | RowError, _Offsets]:
    """Return the row tokenized in pieces that end where spans start; its fault if that doesn't help.

    An indented answer, as of code, begins with white space. Tokenizers that cut like GPT-2 join it
    with the newline that ends the prompt, which is a token of its own when the model is asked. The
    indents of earlier answers stay cut as they were produced.
    """
    edges = [0, *(start for start, _ in rendered.spans), len(rendered.text)]
    pieces = [rendered.text[start:stop] for start, stop in pairwise(edges)]
    encodings = _encodings(pieces, tokenizer, offsets=True)
    ids = [token for encoding in encodings for token in encoding.ids]
    offsets = [
        (edge + start, edge + stop)
        for edge, encoding in zip(edges, encodings, strict=False)
        for start, stop in encoding.offsets
    ]
    decode = tokenizer.backend_tokenizer.decode
    exact = all(
        decode(encoding.ids, skip_special_tokens=False) == piece
        for encoding, piece in zip(encodings, pieces, strict=True)
    )
    return (_align(rendered, ids, offsets) if exact else fault), offsets


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prompt:
    """A prompt to be tokenized alone: characters `begin`..`stop` of a row must give its tokens
    `first`..`last`.
    """

    row: int
    begin: int
    stop: int
    first: int
    last: int


def _check_prompts(
    rendered: Sequence[RenderedRow],
    examples: list[Example | RowError],
    offsets: list[_Offsets],
    tokenizer: "PreTrainedTokenizerBase",
) -> list[Example | RowError]:
    """Replace each example with a prompt that alone gives other ids than the row starts with by a
    fault.

    A prompt is tokenized from its last added token on, because text is cut at added tokens before
    anything else happens to it. Where that differs, the whole prompt decides.

    Example: `...<|im_start|>assistant\\n\\n|Hello<|im_end|>`, where | marks the span's start.
    Alone, `<|im_start|>assistant\\n\\n` must give the row's tokens from that `<|im_start|>` up to
    the span. GPT-2 cuts white space before its last character if text follows, so the row has two
    newline tokens. Alone the newlines are one token: a boundary fault.
    """
    added = frozenset(tokenizer.added_tokens_decoder)
    prompts = [
        _prompt(row, example.input_ids, offsets[row], start, added)
        for row, example in enumerate(examples)
        if isinstance(example, Example)
        for start, _ in rendered[row].spans
        if start
    ]
    checked = list(examples)
    for prompt in _differing(prompts, rendered, examples, tokenizer):
        whole = replace(prompt, begin=0, first=0)
        if _differing([whole], rendered, examples, tokenizer):
            difference = (
                "the generation prompt alone gives other tokens than the row has at "
                f"{_near(rendered[prompt.row].text, prompt.stop)}"
            )
            checked[prompt.row] = _fault(rendered[prompt.row], "boundary", difference)
    return checked


def _prompt(
    row: int, ids: list[int], offsets: _Offsets, stop: int, added: frozenset[int]
) -> _Prompt:
    last = bisect_left(offsets, stop, key=itemgetter(0))
    first = next((token for token in range(last - 1, 0, -1) if ids[token] in added), 0)
    begin = offsets[first][0] if first else 0
    return _Prompt(row=row, begin=begin, stop=stop, first=first, last=last)


def _differing(
    prompts: list[_Prompt],
    rendered: Sequence[RenderedRow],
    examples: Sequence[Example | RowError],
    tokenizer: "PreTrainedTokenizerBase",
) -> list[_Prompt]:
    """Return the prompts that alone give other tokens than their rows have."""
    if not prompts:
        return []
    texts = [rendered[prompt.row].text[prompt.begin : prompt.stop] for prompt in prompts]
    distinct = list(dict.fromkeys(texts))  # most prompts end alike
    encodings = _encodings(distinct, tokenizer, offsets=False)
    ids_of = {text: encoding.ids for text, encoding in zip(distinct, encodings, strict=True)}
    return [
        prompt
        for prompt, text in zip(prompts, texts, strict=True)
        if ids_of[text] != _ids(examples[prompt.row])[prompt.first : prompt.last]
    ]


def _ids(example: Example | RowError) -> list[int]:
    assert isinstance(example, Example), "only rows without a fault have prompts to check"
    return example.input_ids


def _near(text: str, edge: int) -> str:
    return f"{text[max(0, edge - 30) : edge]!r} | {text[edge : edge + 30]!r}"


def _fault(rendered: RenderedRow, code: Code, what: str) -> RowError:
    return RowError(code, what, source=rendered.source, row=rendered.row, mode=rendered.mode)
