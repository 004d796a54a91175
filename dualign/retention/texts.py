"""Fixed texts under a model in training: the loss on held-out rows, and KL(start || now).

The texts are answers that the start gave to the tasks, and held-out rows. At each position with a label, the
start's log-probabilities of its likeliest tokens are kept, and that of all others as one:

    KL = sum over kept tokens of p (log p - log q) + p_rest (log p_rest - log q_rest)

That is KL(start || now) where the vocabulary has no more tokens, and a lower bound of it where it has.
Shapes: T tokens of a text, N positions with a label, K kept tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dualign.data.config import SourceConfig
from dualign.data.conversation import MODES, PLAIN_TEXT
from dualign.data.prepare import prepare_sft
from dualign.data.request import DataRequest
from dualign.data.tokens.labels import IGNORE_INDEX

_KEPT = 1024  # tokens of each position whose log-probability is kept: 8 KiB
_POSITIONS = 2048  # of each mode and kind of text
_LONGEST = 1024  # tokens of a text


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Tokens of a text, with a label where something is predicted, in a mode."""

    mode: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    held_out: bool
    """it is a row, whose loss is measured too"""


def held_out_texts(
    request: DataRequest, sources: Sequence[str | SourceConfig], rows: int
) -> list[Text]:
    """Return held-out rows as the stage would train on them, `rows` of each source at most.

    Raises:
        DataError: a row that can't be read. TemplateError: one that can't be rendered.
    """
    texts = []
    for entry in sources:
        source = SourceConfig(path=entry) if isinstance(entry, str) else entry
        if source.rows is None:
            source = replace(source, rows=rows)
        data = replace(
            request.data,
            sources=(source,),
            packing="none",
            supervise="assistant",
            validation_rows=0,
            mix=None,
            dedup=None,
            streaming=None,
            decontaminate=None,
        )
        prepared = prepare_sft(replace(request, data=data))
        for row in prepared.train:
            mode, _ = prepared.groups[row["doc_groups"][0]]
            texts.append(_text(mode, row["input_ids"], row["labels"], held_out=True))
    return texts


def answer_texts(
    tokenizer: PreTrainedTokenizerBase, samples: Sequence[Mapping[str, Any]]
) -> list[Text]:
    """Return the answers of an evaluation's samples, each after its prompt."""
    texts = []
    for sample in samples:
        prompt, answer = (
            tokenizer(sample[key], add_special_tokens=False)["input_ids"]
            for key in ("rendered", "generated")
        )
        labels = [IGNORE_INDEX] * len(prompt) + answer
        texts.append(_text(sample["mode"], prompt + answer, labels, held_out=False))
    return texts


def _text(mode: str, ids: Sequence[int], labels: Sequence[int], *, held_out: bool) -> Text:
    return Text(
        mode=mode,
        ids=tuple(ids[:_LONGEST]),
        labels=tuple(labels[:_LONGEST]),
        held_out=held_out,
    )


def measured_texts(texts: Sequence[Text]) -> list[Text]:
    """Return the first texts of each mode and kind that have `_POSITIONS` labels together."""
    counts: dict[tuple[str, bool], int] = {}
    chosen = []
    for text in texts:
        key = (text.mode, text.held_out)
        labels = sum(label != IGNORE_INDEX for label in text.labels[1:])
        if labels and counts.get(key, 0) < _POSITIONS:
            counts[key] = counts.get(key, 0) + labels
            chosen.append(text)
    return chosen


@torch.no_grad()
def remember_start(model: PreTrainedModel, texts: Sequence[Text], file: Path) -> None:
    """Write the start's log-probabilities of its likeliest tokens at each label of the texts."""
    kept: dict[str, Tensor] = {}
    for number, text in enumerate(texts):
        logps_NV = _logps(model, text)[0]
        top = logps_NV.topk(min(_KEPT, logps_NV.shape[1]))
        kept[f"{number}.ids"] = top.indices.int().cpu().contiguous()
        kept[f"{number}.logps"] = top.values.cpu().contiguous()
        kept[f"{number}.rest"] = _rest(logps_NV, top.indices).cpu().contiguous()
    aside = file.with_name(f".{file.name}.new")
    save_file(kept, aside)
    aside.replace(file)


@torch.no_grad()
def text_figures(model: PreTrainedModel, texts: Sequence[Text], file: Path) -> dict[str, Any]:
    """Return `{"kl": {mode: nats a token}, "loss": {mode: ...}, "kl_tokens": ..., "loss_tokens": ...}`.

    Args:
        file: what `remember_start` wrote of the same texts.
    """
    kept = load_file(file)
    sums: dict[str, dict[str, list[float]]] = {"kl": {}, "loss": {}}
    for number, text in enumerate(texts):
        logps_NV, labels_N = _logps(model, text)
        start = (kept[f"{number}.{name}"].to(logps_NV.device) for name in ("ids", "logps", "rest"))
        figures = {"kl": _divergence(logps_NV, *start)}
        if text.held_out:
            figures["loss"] = -logps_NV.gather(1, labels_N[:, None]).sum()
        for name, total in figures.items():
            entry = sums[name].setdefault(text.mode, [0.0, 0])
            entry[0] += float(total)
            entry[1] += len(labels_N)
    result: dict[str, Any] = {}
    for name, by_mode in sums.items():
        ordered = {mode: by_mode[mode] for mode in (*MODES, PLAIN_TEXT) if mode in by_mode}
        if ordered:
            result[name] = {mode: total / tokens for mode, (total, tokens) in ordered.items()}
            result[f"{name}_tokens"] = {mode: int(tokens) for mode, (_, tokens) in ordered.items()}
    return result


def _logps(model: PreTrainedModel, text: Text) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities [N, V] of what each label is predicted from, and the labels [N]."""
    ids_1T = torch.tensor([text.ids], device=model.device)
    labels_T = torch.tensor(text.labels, device=model.device)[1:]
    places_N = (labels_T != IGNORE_INDEX).nonzero()[:, 0]
    logits_TV: Tensor = model(input_ids=ids_1T, use_cache=False).logits[0]
    return logits_TV[places_N].float().log_softmax(-1), labels_T[places_N]


def _rest(logps_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """Return the log-probability of all tokens but `ids_NK`, [N]; -inf without any."""
    return logps_NV.scatter(1, ids_NK.long(), -torch.inf).logsumexp(-1)


def _divergence(logps_NV: Tensor, ids_NK: Tensor, start_NK: Tensor, rest_N: Tensor) -> Tensor:
    """Return the sum over positions of KL(start || now), over the kept tokens and the rest."""
    now_NK = logps_NV.gather(1, ids_NK.long())
    kept = (start_NK.double().exp() * (start_NK.double() - now_NK.double())).sum()
    if ids_NK.shape[1] == logps_NV.shape[1]:
        return kept
    now_N = _rest(logps_NV, ids_NK).double()
    return kept + (rest_N.double().exp() * (rest_N.double() - now_N)).sum()
