"""Rendered -> Example: the text tokenised once, and a label for each token that the model has to
produce.

Two things are checked for every supervised turn. No token may reach over a span's edge. And the
prompt alone must tokenise to exactly the ids that the row starts with: at inference the model
continues those, so a row that joins the end of the prompt and the start of the answer into one
token would train something that never happens.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING

from dualign.data.config import TooLong
from dualign.data.conversation import Mode
from dualign.data.faults import Code, RowError
from dualign.data.text.spans import Rendered
from dualign.data.tokens.added_tokens import Landmarks, landmarks
from dualign.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A tokenised row. `labels` has one entry for each token: the token itself, or IGNORE_INDEX."""

    input_ids: list[int]
    labels: list[int]
    mode: Mode
    source: str
    row: int
    cut: bool = False


def encode(
    rendered: Rendered,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_tokens: int | None,
    too_long: TooLong = "error",
) -> Example:
    """The example of one row; RowError if it is too long or a span's edge falls inside a token."""
    (made,) = encode_batch([rendered], tokenizer, max_tokens=max_tokens, too_long=too_long)
    if isinstance(made, RowError):
        raise made
    return made


def encode_batch(
    rendered: Sequence[Rendered],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_tokens: int | None,
    too_long: TooLong = "error",
) -> list[Example | RowError]:
    """An example for each row, or what is wrong with it. `max_tokens=None`: any length.

    With `cut_end` a row of more tokens loses its end, unless that is inside a trace that is learnt.
    """
    if not rendered:
        return []
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{type(tokenizer).__name__} can't tell where in the text its tokens are. "
            "Expected a fast tokenizer: one with a tokenizer.json."
        )
    texts = [one.text for one in rendered]
    known = landmarks(tokenizer)
    made: list[Example | RowError | None] = [None] * len(rendered)
    if known is not None:
        quick = zip(rendered, _encodings(texts, tokenizer, places=False), strict=True)
        made = [_by_landmarks(known, one, tokens.ids, max_tokens) for one, tokens in quick]
    rest = [at for at, one in enumerate(made) if one is None]
    slow = [rendered[at] for at in rest]
    for at, one in zip(rest, _by_offsets(slow, tokenizer, max_tokens, too_long), strict=True):
        made[at] = one
    return [one for one in made if one is not None]


def _by_landmarks(
    known: Landmarks, rendered: Rendered, ids: list[int], max_tokens: int | None
) -> Example | None:
    """The example, if all is as it should be."""
    if max_tokens is not None and len(ids) > max_tokens:
        return None
    if rendered.spans == ((0, len(rendered.text)),):
        return _example(rendered, ids, list(ids))
    found = known.labelled(rendered.text, rendered.spans, ids)
    if not found:
        return None
    labels = [IGNORE_INDEX] * len(ids)
    for first, last in found:
        labels[first:last] = ids[first:last]
    return _example(rendered, ids, labels)


def _by_offsets(
    rendered: Sequence[Rendered],
    tokenizer: "PreTrainedTokenizerBase",
    max_tokens: int | None,
    too_long: TooLong,
) -> list[Example | RowError]:
    """The examples, or what is wrong, told by the characters of every token."""
    if not rendered:
        return []
    encodings = _encodings([one.text for one in rendered], tokenizer, places=True)
    offsets = [encoding.offsets for encoding in encodings]
    rows = zip(rendered, encodings, offsets, strict=True)
    made = [_labelled(one, encoding.ids, places) for one, encoding, places in rows]
    checked = _check_prompts(rendered, made, offsets, tokenizer)
    if max_tokens is None:
        return checked
    found = zip(rendered, checked, offsets, strict=True)
    return [_fitted(one, example, places, max_tokens, too_long) for one, example, places in found]


def _encodings(
    texts: list[str], tokenizer: "PreTrainedTokenizerBase", *, places: bool
) -> list["Encoding"]:
    """Each text's tokens alone, whole. What calling the tokenizer does, without its copies."""
    backend = tokenizer.backend_tokenizer
    # Only where there is any: another thread may be tokenising, and then nothing can be set.
    if backend.padding is not None:
        backend.no_padding()
    if backend.truncation is not None:
        backend.no_truncation()
    encode = backend.encode_batch if places else backend.encode_batch_fast
    encodings: list[Encoding] = encode(texts, add_special_tokens=False)
    return encodings


def _example(rendered: Rendered, ids: list[int], labels: list[int]) -> Example:
    return Example(
        input_ids=ids,
        labels=labels,
        mode=rendered.mode,
        source=rendered.source,
        row=rendered.row,
    )


def _fitted(
    rendered: Rendered,
    made: Example | RowError,
    offsets: list[tuple[int, int]],
    max_tokens: int,
    too_long: TooLong,
) -> Example | RowError:
    if isinstance(made, RowError) or len(made.input_ids) <= max_tokens:
        return made
    found = f"{len(made.input_ids)} tokens, max_tokens is {max_tokens}"
    if not too_long.startswith("cut_end"):
        return _fault(rendered, "too_long", found)
    edge = offsets[max_tokens][0]
    if too_long == "cut_end" and any(start <= edge < stop for start, stop in rendered.traces):
        return _fault(rendered, "too_long", f"{found}, and the cut would be inside a think block")
    labels = made.labels[:max_tokens]
    if labels.count(IGNORE_INDEX) == max_tokens:
        return _fault(rendered, "too_long", f"{found}, and nothing supervised is before the cut")
    return replace(made, input_ids=made.input_ids[:max_tokens], labels=labels, cut=True)


def _labelled(
    rendered: Rendered, ids: list[int], offsets: list[tuple[int, int]]
) -> Example | RowError:
    labels, spans = [IGNORE_INDEX] * len(ids), rendered.spans
    if rendered.spans == ((0, len(rendered.text)),):
        labels, spans = list(ids), ()
    for start, stop in spans:
        first, last = (bisect_left(offsets, edge, key=itemgetter(0)) for edge in (start, stop))
        over = [
            edge for at, edge in ((first, start), (last, stop)) if at and offsets[at - 1][1] > edge
        ]
        if over or first == last or offsets[last - 1][1] != stop:
            edge = over[0] if over else stop
            return _fault(
                rendered, "boundary", f"no token starts and ends at {_near(rendered.text, edge)}"
            )
        labels[first:last] = ids[first:last]
    if not rendered.spans:
        return _fault(rendered, "no_answer", "nothing in the row is supervised")
    return _example(rendered, ids, labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prompt:
    """A prompt to be tokenised alone: characters `begin`..`stop` of a row must give its tokens
    `first`..`last`.
    """

    row: int
    begin: int
    stop: int
    first: int
    last: int


def _check_prompts(
    rendered: Sequence[Rendered],
    made: list[Example | RowError],
    offsets: list[list[tuple[int, int]]],
    tokenizer: "PreTrainedTokenizerBase",
) -> list[Example | RowError]:
    """Put a fault in the place of each example with a prompt that alone gives other ids than the
    row starts with.

    A prompt is tokenised from its last added token on, because text is cut at added tokens before
    anything else happens to it. Where that differs, the whole prompt decides.
    """
    added = frozenset(tokenizer.added_tokens_decoder)
    prompts = [
        _prompt(row, example.input_ids, offsets[row], start, added)
        for row, example in enumerate(made)
        if isinstance(example, Example)
        for start, _ in rendered[row].spans
        if start
    ]
    checked = list(made)
    for prompt in _differing(prompts, rendered, made, tokenizer):
        whole = replace(prompt, begin=0, first=0)
        if _differing([whole], rendered, made, tokenizer):
            found = (
                "the generation prompt alone gives other tokens than the row has at "
                f"{_near(rendered[prompt.row].text, prompt.stop)}"
            )
            checked[prompt.row] = _fault(rendered[prompt.row], "boundary", found)
    return checked


def _prompt(
    row: int, ids: list[int], offsets: list[tuple[int, int]], stop: int, added: frozenset[int]
) -> _Prompt:
    last = bisect_left(offsets, stop, key=itemgetter(0))
    first = next((at for at in range(last - 1, 0, -1) if ids[at] in added), 0)
    begin = offsets[first][0] if first else 0
    return _Prompt(row=row, begin=begin, stop=stop, first=first, last=last)


def _differing(
    prompts: list[_Prompt],
    rendered: Sequence[Rendered],
    made: Sequence[Example | RowError],
    tokenizer: "PreTrainedTokenizerBase",
) -> list[_Prompt]:
    if not prompts:
        return []
    texts = [rendered[one.row].text[one.begin : one.stop] for one in prompts]
    once = list(dict.fromkeys(texts))  # most prompts end alike
    alone = [encoding.ids for encoding in _encodings(once, tokenizer, places=False)]
    ids_of = dict(zip(once, alone, strict=True))
    return [
        prompt
        for prompt, text in zip(prompts, texts, strict=True)
        if ids_of[text] != _ids(made[prompt.row])[prompt.first : prompt.last]
    ]


def _ids(made: Example | RowError) -> list[int]:
    assert isinstance(made, Example), "only rows without a fault have prompts to check"
    return made.input_ids


def _near(text: str, edge: int) -> str:
    return f"{text[max(0, edge - 30) : edge]!r} | {text[edge : edge + 30]!r}"


def _fault(rendered: Rendered, code: Code, found: str) -> RowError:
    return RowError(code, found, source=rendered.source, row=rendered.row, mode=rendered.mode)
