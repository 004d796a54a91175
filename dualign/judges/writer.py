"""The model behind a pairwise or rubric judge: prompts in, what each judgment says out."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from dualign.errors import EvaluationError, excerpt
from dualign.generation.answers import Answer, Prompt, ask, sample_request
from dualign.generation.responders import CheckpointResponder, control_of, open_responder
from dualign.generation.samples import SampleFile
from dualign.generation.sampling import Sampling
from dualign.intervals import wilson
from dualign.judges.config import PairwiseConfig, RubricConfig
from dualign.judges.prompts import last_object

T = TypeVar("T")
PROBE = 32
"""Judgments after which an unusable judge is found out, before all are paid for."""
_MOST_UNREADABLE = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgment(Generic[T]):
    """What a judgment says; None with a reason: unreadable, failed."""

    value: T | None
    reason: str = ""


class JudgmentWriter:
    """A model that writes judgments. They are appended to `file`; those that are there aren't asked again."""

    def __init__(
        self, config: PairwiseConfig | RubricConfig, file: SampleFile, *, label: str, seed: int
    ) -> None:
        """Open the model; its weights are loaded when it first judges.

        Raises:
            CheckpointError: no such model.
            EvaluationError: the endpoint can't be used.
        """
        self.config, self._file = config, file
        self._responder = open_responder(
            config.model,
            backend=config.backend,
            dtype=config.dtype,
            batch_tokens=config.batch_tokens,
            label=f"{label}: judging",
        )
        self.model = self._responder.model
        self._name = f"{self._responder.identity}:{seed if config.temperature else 0}"
        self._counts: Counter[str] = Counter()
        self._unread = ""

    @cached_property
    def control(self) -> re.Pattern[str] | None:
        """The control tokens of a checkpoint's tokenizer; of a server they aren't known."""
        if not isinstance(self._responder, CheckpointResponder):
            return None
        return control_of(self._responder.subject.tokenizer)

    def judgments(
        self, texts: Sequence[str], read: Callable[[Mapping[str, Any]], T | None]
    ) -> list[Judgment[T]]:
        """Ask each text.

        Args:
            read: returns what the object at a judgment's end says; None if it doesn't say it.

        Raises:
            EvaluationError: the model can't be asked, or most of its judgments can't be read.
        """
        sampling = Sampling(
            max_new_tokens=self.config.max_new_tokens, temperature=self.config.temperature
        )
        requests = [sample_request(self._prompt(text), sampling, 0, self._name) for text in texts]
        answers = ask(self._responder, requests, self._file)
        judgments = [self._read(answer, read) for answer in answers]
        self._require_readable()
        return judgments

    def record(self) -> dict[str, Any]:
        """Return the counts, for run.json: judgments asked, those without a readable verdict, of which
        the limit cut some, and those without an answer.
        """
        endpoint = self._responder.record()
        return {
            "kind": self.config.kind,
            "model": self.model,
            **{name: self._counts[name] for name in ("asked", "unreadable", "cut", "failed")},
            **({} if endpoint is None else {"endpoint": endpoint}),
        }

    def _prompt(self, text: str) -> Prompt:
        turn = {"role": "user", "content": text}
        switch = self._responder.switch_of(None)
        try:
            return self._responder.prompt([turn], self.config.mode, switch)
        except Exception as error:  # a template can raise anything
            raise EvaluationError(
                f"judge {self.model}: its chat template can't render a question: {error}"
            ) from error

    def _read(
        self, answer: Answer | None, read: Callable[[Mapping[str, Any]], T | None]
    ) -> Judgment[T]:
        self._counts["asked"] += 1
        if answer is None:
            self._counts["failed"] += 1
            return Judgment(value=None, reason="failed")
        content = last_object(answer.reply.answer) if answer.finished else None
        value = None if content is None else read(content)
        if value is None:
            self._counts["unreadable"] += 1
            self._counts["cut"] += not answer.finished
            self._unread = self._unread or answer.generated
            return Judgment(value=None, reason="unreadable")
        return Judgment(value=value)

    def _require_readable(self) -> None:
        count = self._counts["asked"] - self._counts["failed"]
        unreadable, cut = self._counts["unreadable"], self._counts["cut"]
        if count == 0 or wilson(unreadable / count, count)[0] <= _MOST_UNREADABLE:
            return
        is_cut = 2 * cut > unreadable
        hint = f"{cut} were cut: raise max_new_tokens" if is_cut else "take a model that can judge"
        raise EvaluationError(
            f"judge {self.model}: {unreadable} of {count} judgments can't be read, such as "
            f"{excerpt(self._unread, 160)}; expected a last line of JSON, as the prompt asks; {hint}"
        )
