"""A reward model: a sequence classifier with one label, whose logit is the score of an answer.

The logit is read at the last token of a row, which transformers finds by the pad token: with a pad
token of another id than the padding's, a row in a batch would be read inside its padding. Shapes: B
rows, T tokens.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from statistics import fmean
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from dualign.errors import CheckpointError, EvaluationError
from dualign.generation.answers import request_key
from dualign.generation.responders import control_of
from dualign.generation.samples import AnswerRecord, SampleFile
from dualign.judges.base import Comparison, JudgedQuestion, Ranking, compare_scores
from dualign.judges.config import RewardModelConfig
from dualign.judges.prompts import inert, visible
from dualign.models.loading import identity
from dualign.models.source import ModelSource, resolve_model
from dualign.models.tokenizer import load_chat_tokenizer
from dualign.terminal import progress

_ALIKE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far a score in a batch may be from the score alone, times the larger of 1 and the score: sums in
another order differ by far less, a logit of another token by far more.
"""
_LABELS = 5  # shown in messages


class RewardModel:
    """A model that scores; `Judge` says what it gives."""

    def __init__(
        self, config: RewardModelConfig, file: SampleFile, *, label: str, seed: int
    ) -> None:
        """Read settings and tokenizer; the weights are loaded when an answer is scored.

        Raises:
            CheckpointError: no such model, or it is no reward model.
        """
        self._config, self._file, self._label = config, file, label
        self._source = resolve_model(config.model)
        require_one_label(self._source, config.model)
        self._tokenizer = load_chat_tokenizer(config.model)
        self._control = control_of(self._tokenizer)
        self._name = f"{identity(config.model)}:{config.dtype}"
        self._scores: list[float] = []
        self._too_long = 0

    def score(self, questions: Sequence[JudgedQuestion]) -> list[Ranking]:
        """Return the scores of each question's answers; None for one that is longer than the model reads.

        Raises:
            CheckpointError: the weights are those of another kind of model.
            EvaluationError: the template can't render a question, or scores depend on the batch.
        """
        rows = [
            self._ids(question, answer) for question in questions for answer in question.answers
        ]
        keys = [request_key([self._name, *row]) for row in rows]
        missing = {
            key: row
            for key, row in zip(keys, rows, strict=True)
            if key not in self._file.answered and not self._is_too_long(row)
        }
        if missing:
            self._score_rows(missing)
        scores = iter([self._known(key) for key in keys])
        return [self._ranking([next(scores) for _ in q.answers]) for q in questions]

    def compare(self, questions: Sequence[JudgedQuestion]) -> list[Comparison]:
        """Return which of each question's two answers has the higher score."""
        return compare_scores(self.score(questions))

    def record(self) -> dict[str, Any]:
        """Return the counts for run.json, with the mean, lowest and highest score."""
        scores = self._scores
        figures = (fmean(scores), min(scores), max(scores)) if scores else (None, None, None)
        return {
            "kind": self._config.kind,
            "model": self._config.model,
            "asked": len(scores) + self._too_long,
            "too_long": self._too_long,
            **dict(zip(("mean_score", "lowest", "highest"), figures, strict=True)),
        }

    def in_words(self) -> str:
        """Return what was judged, in a line."""
        text = f"judge {self._config.model}: {len(self._scores):,} scores"
        if self._scores:
            low, high = min(self._scores), max(self._scores)
            text += f", {fmean(self._scores):.3f} on average, {low:.3f} to {high:.3f}"
        return text + (f"; too_long {self._too_long:,}" if self._too_long else "")

    def _ids(self, question: JudgedQuestion, answer: str) -> list[int]:
        """Return the tokens of a conversation with its answer, by the model's own template."""
        turns = [*question.messages, {"role": "assistant", "content": answer}]
        try:
            text = self._tokenizer.apply_chat_template(
                [self._shown(turn) for turn in turns], tokenize=False
            )
        except Exception as error:  # a template can raise anything
            raise EvaluationError(
                f"judge {self._config.model}: its chat template can't render {question.key}: {error}"
            ) from error
        ids: list[int] = self._tokenizer(str(text), add_special_tokens=False)["input_ids"]
        if not ids:
            raise EvaluationError(f"judge {self._config.model}: {question.key} renders to no token")
        return ids

    def _shown(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        """Return a turn without its trace, and with its control tokens broken up: an answer could end
        its turn, and praise itself as the user.
        """
        shown = {name: value for name, value in turn.items() if name != "reasoning_content"}
        if isinstance(text := shown.get("content"), str):
            text = visible(text) if shown.get("role") == "assistant" else text
            shown["content"] = inert(text, self._control)
        return shown

    def _is_too_long(self, row: Sequence[int]) -> bool:
        longest = getattr(self._settings.get_text_config(), "max_position_embeddings", None)
        return longest is not None and len(row) > longest

    @cached_property
    def _settings(self) -> PretrainedConfig:
        return AutoConfig.from_pretrained(self._source.base, revision=self._source.revision)

    def _known(self, key: str) -> float | None:
        answer = self._file.answered.get(key)
        return None if answer is None else float(answer.generated)

    def _ranking(self, scores: Sequence[float | None]) -> Ranking:
        missing = scores.count(None)
        self._too_long += missing
        self._scores += [score for score in scores if score is not None]
        return Ranking(scores=tuple(scores), dropped={"too_long": missing} if missing else {})

    def _score_rows(self, rows: Mapping[str, list[int]]) -> None:
        model = _load_reward_model(self._source, self._config.model, dtype=self._config.dtype)
        pad = _pad_token(model, rows.values())
        order = sorted(rows, key=lambda key: -len(rows[key]))
        _require_alike(model, [rows[order[0]], rows[order[-1]]], pad, self._config.model)
        with progress(len(rows), f"{self._label}: scoring", unit="answer") as bar:
            for keys in _batches(order, rows, self._config.batch_tokens):
                scores = row_scores(model, [rows[key] for key in keys], pad)
                if not all(map(math.isfinite, scores)):
                    raise EvaluationError(f"judge {self._config.model}: a score isn't finite")
                self._file.append(
                    AnswerRecord(key=key, generated=repr(score), finished=True)
                    for key, score in zip(keys, scores, strict=True)
                )
                bar.update(len(keys))


def require_one_label(source: ModelSource, name: str) -> None:
    """Check by its config.json that a model has one label.

    Raises:
        CheckpointError: it has another head, or can't be read.
    """
    if source.adapter is not None:
        raise CheckpointError(
            f"judge {name}: an adapter; merge it into its base first (peft's merge_and_unload), and name "
            "that folder"
        )
    try:
        config = AutoConfig.from_pretrained(source.base, revision=source.revision)
    except Exception as error:  # no connection, or whatever a broken file leads to
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"judge {name}: its config.json can't be read ({reason})") from error
    heads = [str(head) for head in config.architectures or ()]
    if heads and not any(head.endswith("ForSequenceClassification") for head in heads):
        raise CheckpointError(
            f"judge {name}: found {', '.join(heads)}; a reward model is ...ForSequenceClassification with "
            "one label. A model that writes is a judge of kind pairwise or rubric"
        )
    if config.num_labels != 1:
        labels = [str(label) for label in (config.id2label or {}).values()]
        shown = ", ".join(labels[:_LABELS]) + (", ..." if len(labels) > _LABELS else "")
        raise CheckpointError(
            f"judge {name}: found a classifier with {config.num_labels} labels ({shown}); a reward model has one"
        )


def _load_reward_model(source: ModelSource, name: str, *, dtype: str) -> PreTrainedModel:
    """Load a reward model for inference, on the accelerator if there is one.

    Raises:
        CheckpointError: its weights have no score of their own.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    dtype = "float32" if dtype == "auto" and device is None else dtype
    model, loaded = AutoModelForSequenceClassification.from_pretrained(
        source.base, revision=source.revision, dtype=dtype, output_loading_info=True
    )
    if missing := sorted(loaded["missing_keys"]):
        raise CheckpointError(
            f"judge {name}: the weights lack {', '.join(missing[:3])}, so scores would be random; expected a "
            "trained reward model"
        )
    model = model.eval()
    return model if device is None else model.to(device)


def _pad_token(model: PreTrainedModel, rows: Iterable[Sequence[int]]) -> int:
    """Return the token that rows are padded with, which the model's config names from now on.

    transformers reads the logit at the last token that isn't the config's pad token. Where it names
    none, or -1, that is the last token of a row alone: any token that no row holds keeps it so.
    """
    config = model.config.get_text_config()
    if config.pad_token_id is None or config.pad_token_id < 0:
        held = {token for row in rows for token in row}
        config.pad_token_id = max(set(range(config.vocab_size)) - held)
    return int(config.pad_token_id)


@torch.inference_mode()
def row_scores(model: PreTrainedModel, rows: Sequence[Sequence[int]], pad: int) -> list[float]:
    """Return the score of each row, padded on the right to the longest."""
    longest = max(map(len, rows))
    ids_BT = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    logits_B1 = model(
        input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device)
    ).logits
    scores: list[float] = logits_B1.float()[:, 0].tolist()
    return scores


def _require_alike(model: PreTrainedModel, rows: Sequence[list[int]], pad: int, name: str) -> None:
    """Check that padding doesn't change a score, on the longest and the shortest row.

    Raises:
        EvaluationError: it does, or a score isn't finite.
    """
    together = row_scores(model, rows, pad)
    alone = [score for row in rows for score in row_scores(model, [row], pad)]
    for first, second in zip(together, alone, strict=True):
        bound = _ALIKE.get(model.dtype, 1e-3) * max(1.0, abs(second))
        if not abs(first - second) <= bound:  # also if one is NaN
            raise EvaluationError(
                f"judge {name}: an answer has the score {second:.5g} alone and {first:.5g} in a batch with padding; "
                "the model doesn't mask padding or finds another last token: set pad_token_id in its config.json"
            )


def _batches(
    order: Sequence[str], rows: Mapping[str, list[int]], batch_tokens: int
) -> Iterator[list[str]]:
    """Yield keys of rows, longest first: a batch too big for the memory fails at once."""
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // len(rows[order[start]]))
        yield list(order[start : start + count])
        start += count
