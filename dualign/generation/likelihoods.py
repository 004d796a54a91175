"""How likely texts are after a prompt: log-probabilities of multiple-choice tasks and of documents.

    requests = [LikelihoodRequest(context=prompt.text, texts=(" A", " B"))]
    for batch in likelihoods(model, tokenizer, requests): ...

Tokens are cut as lm-evaluation-harness's `hf` model (0.4.13) cuts them: white space at the end of a
context belongs to the text after it, and a context that is too long loses its head. The texts after
one context are branches of one document, so the context is computed once where the model's layers
can share it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dualign.errors import EvaluationError
from dualign.models.head import label_scores, without_adapters
from dualign.models.pairs import MODEL_INPUTS, Layout, answer_batch, label_values, pair_layout
from dualign.models.token_scores import Extra
from dualign.terminal import progress

_NO_WINDOW = 2048  # of a config that names none, as lm-eval's


class Likelihood(NamedTuple):
    """The log-probability of a text, in nats, and whether greedy decoding would write it."""

    value: float
    greedy: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class LikelihoodRequest:
    """Texts to be scored after a context; without one, after the token that begins a document."""

    context: str | None
    texts: tuple[str, ...]


class _Document(NamedTuple):
    """A prefix and its branches as token ids; `places` are the texts that they are (parts of)."""

    prefix: list[int]
    branches: list[list[int]]
    places: list[int]


@torch.inference_mode()
def likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[LikelihoodRequest],
    *,
    batch_tokens: int = 8192,
    label: str | None = None,
) -> Iterator[dict[int, tuple[Likelihood, ...]]]:
    """Yield the likelihoods of the texts of some requests, by the index of the request.

    Args:
        batch_tokens: bound of the positions in memory at once.
        label: what the progress bar is called; None shows none.

    Raises:
        EvaluationError: a text has no tokens.
    """
    weights = without_adapters(model)
    cut = _Cut(tokenizer, _window_of(weights, tokenizer))
    was_training = weights.training
    weights.eval()
    try:
        with (
            progress(len(requests), label or "", unit="question", silent=label is None) as bar,
            pair_layout(weights) as layout,
        ):
            documents = [cut.documents(request) for request in requests]
            for batch in _batches(documents, layout, batch_tokens):
                parts = [(index, part) for index in batch for part in documents[index]]
                scored = _score(weights, layout, [part for _, part in parts])
                yield {
                    index: _sums(len(requests[index].texts), parts, scored, index)
                    for index in batch
                }
                bar.update(len(batch))
    finally:
        weights.train(was_training)


def _window_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the most tokens that a model reads at once."""
    config = model.config.get_text_config()
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if (length := getattr(config, name, None)) is not None:
            return int(length)
    length = getattr(tokenizer, "model_max_length", None)
    return int(length) if length and length < 1 << 40 else _NO_WINDOW  # no length is a huge one


class _Cut:
    """Requests -> documents of token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, window: int) -> None:
        self._tokenizer, self._window = tokenizer, window
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._start = bos if bos is not None else eos
        self._start_text = tokenizer.decode([self._start]) if self._start is not None else ""

    def documents(self, request: LikelihoodRequest) -> list[_Document]:
        if request.context is None:
            return [
                part
                for place, text in enumerate(request.texts)
                for part in self._windows(text, place)
            ]
        if not request.context:
            return [self._without_context(text, place) for place, text in enumerate(request.texts)]
        return self._branches(request.context, request.texts)

    def _branches(self, context: str, texts: Sequence[str]) -> list[_Document]:
        """Return the context with the texts as its branches; several where some don't fit with all of it."""
        head = context.rstrip()
        space = context[len(head) :]
        prefix = self._ids(head)
        by_length: dict[int, _Document] = {}
        for place, text in enumerate(texts):
            ids = self._ids(head + space + text)[len(prefix) :]
            self._require(ids, text)
            kept = prefix[-max(1, self._window + 1 - len(ids)) :]
            document = by_length.setdefault(len(kept), _Document(kept, [], []))
            document.branches.append(ids)
            document.places.append(place)
        return list(by_length.values())

    def _without_context(self, text: str, place: int) -> _Document:
        ids = self._ids(text)
        self._require(ids, text)
        if ids[0] == self._start and len(ids) > 1:
            return _Document(ids[:1], [ids[1:]], [place])
        return _Document([self._document_start()], [ids], [place])

    def _windows(self, text: str, place: int) -> Iterator[_Document]:
        """Yield a whole document in windows: each token is predicted once, the last window is full."""
        special = not (self._start_text and text.startswith(self._start_text))
        ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        self._require(ids, text)
        padded, window = [self._document_start(), *ids], self._window
        for first in range(0, len(ids), window):
            last = min(first + window, len(ids))
            begin = first if first == 0 else last - window
            yield _Document(padded[begin : first + 1], [ids[first:last]], [place])

    def _document_start(self) -> int:
        if self._start is None:
            raise EvaluationError(
                "the tokenizer names neither a bos nor an eos token, so no text can be scored without "
                "a prompt; set bos_token in tokenizer_config.json"
            )
        return int(self._start)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _require(self, ids: Sequence[int], text: str) -> None:
        if not ids:
            raise EvaluationError(
                f"the text {text!r} has no tokens after its prompt, so it has no probability; expected "
                "choices that are more than white space"
            )


def _batches(
    documents: Sequence[Sequence[_Document]], layout: Layout, batch_tokens: int
) -> Iterator[list[int]]:
    """Yield the places of requests, longest first, up to a number of positions."""
    sizes = [
        max((_size(part, layout) for part in parts), default=0) * len(parts) for parts in documents
    ]
    batch: list[int] = []
    for index in sorted(range(len(documents)), key=lambda index: -sizes[index]):
        if batch and (len(batch) + 1) * sizes[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _size(document: _Document, layout: Layout) -> int:
    prefix, lengths = len(document.prefix) - 1, [len(branch) for branch in document.branches]
    if layout == "shared":
        return prefix + sum(lengths)
    return len(lengths) * (prefix + max(lengths))


def _score(
    model: PreTrainedModel, layout: Layout, documents: Sequence[_Document]
) -> list[list[Likelihood]]:
    """Return the likelihood of each branch of each document."""
    batch = answer_batch(
        layout, [part.prefix for part in documents], [part.branches for part in documents]
    )
    inputs = {name: batch[name].to(model.device) for name in MODEL_INPUTS if name in batch}
    extras: tuple[Extra, ...] = ("is_top1",)
    scores = label_scores(model, **inputs, extras=extras)
    lengths = list(batch["answer_lengths"])
    values = torch.split(label_values(scores), lengths)
    greedy = torch.split(label_values(scores, "is_top1"), lengths)
    flat = [
        Likelihood(float(value.sum()), bool(top.all()))
        for value, top in zip(values, greedy, strict=True)
    ]
    branches = iter(flat)
    return [[next(branches) for _ in part.branches] for part in documents]


def _sums(
    count: int,
    parts: Sequence[tuple[int, _Document]],
    scored: Sequence[Sequence[Likelihood]],
    index: int,
) -> tuple[Likelihood, ...]:
    """Return the likelihood of each text of a request, of all of its windows."""
    totals = [Likelihood(0.0, True)] * count
    for (owner, part), branches in zip(parts, scored, strict=True):
        if owner != index:
            continue
        for place, branch in zip(part.places, branches, strict=True):
            before = totals[place]
            totals[place] = Likelihood(before.value + branch.value, before.greedy and branch.greedy)
    return tuple(totals)
