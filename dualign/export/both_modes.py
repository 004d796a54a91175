"""Both modes of an exported model, next to the model that it was made from.

    reference = Side(responder=..., scores=scorer(model))       # transformers, float32
    result = compare_modes(reference, exported, questions, EvalConfig(), tokenizer=tokenizer)
    result.faults()                                             # beyond the bounds, in words

Both are asked the same questions in both modes, greedily. Then the reference's own answers are
read by both: KL(reference || exported) for each token, apart for think and no_think answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dualign.data.conversation import MODES, Mode
from dualign.errors import EvaluationError
from dualign.evaluation.config import EvalConfig
from dualign.evaluation.divergence import (
    Divergence,
    Scorer,
    mean_divergence,
    spread,
    token_divergences,
)
from dualign.evaluation.scores import Change, change_text, paired_change, percent
from dualign.generation.answers import Prompt, Responder, ask, require_all, sample_request
from dualign.generation.samples import SampleFile
from dualign.generation.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dualign.evaluation.requests import TaskSet

_ANSWERS = 16  # of each mode that are read for the KL, spread over the questions
MAX_KL = 0.3
"""nats a token in a mode, from which an export is refused"""
_MAX_LOSS = 0.05
"""of accuracy, closed traces, answers without a leak or finished ones, from which a measurable loss is refused"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """A model that is compared: it answers, and it scores what the other wrote."""

    responder: Responder
    scores: Scorer


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """What both models are asked: problems of tasks in both modes, and prompts without a verifier."""

    tasks: "TaskSet" = ()
    prompts: tuple[tuple[Mode, str], ...] = ()
    """(mode, rendered text): held-out rows of training, up to the answer"""
    origin: str = ""
    """where they are from, in words"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A share of the answers, before and after, with the paired change (Agresti and Min 2005)."""

    before: float
    after: float
    change: Change

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> "Rate":
        return cls(before=fmean(before), after=fmean(after), change=paired_change(before, after))


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeComparison:
    """One mode of the exported model against the reference's."""

    mode: Mode
    answers: int
    accuracy: Rate | None
    """None without tasks: nothing checks the answers"""
    unleaked: Rate
    """answers without a tag of a trace"""
    closed: Rate | None
    """traces that end; None in no_think mode"""
    finished: Rate
    same: int
    """answers that are the same, to the letter"""
    trace: Divergence | None
    """KL(reference || exported) on the traces of the reference's answers; None in no_think mode"""
    answer: Divergence
    """on what follows the traces"""

    def faults(self) -> list[str]:
        """Return what is beyond the bounds, in words."""
        faults = []
        for name, read in (("traces", self.trace), ("answers", self.answer)):
            if read and read.kl is not None and not read.kl <= MAX_KL:
                faults.append(
                    f"{self.mode}: KL {read.kl:.3f} nats a token in {name}, the bound is {MAX_KL:g}"
                )
        for name, rate in (
            ("accuracy", self.accuracy),
            ("closed traces", self.closed),
            ("answers without a leak", self.unleaked),
            ("finished answers", self.finished),
        ):
            if rate and rate.change.high < 0 and rate.change.value < -_MAX_LOSS:
                faults.append(
                    f"{self.mode}: {name} {percent(rate.before)} -> {percent(rate.after)} %, by "
                    f"{change_text(rate.change)} points, the bound is -{100 * _MAX_LOSS:g}"
                )
        return faults


@dataclass(frozen=True, kw_only=True, slots=True)
class BothModes:
    """The comparison in both modes."""

    reference: str
    questions: str
    """where they are from"""
    modes: tuple[ModeComparison, ...]

    def faults(self) -> list[str]:
        return [fault for mode in self.modes for fault in mode.faults()]

    def record(self) -> dict[str, Any]:
        """Return the comparison for export.json."""
        bounds = {"kl": MAX_KL, "loss": _MAX_LOSS}
        return {**asdict(self), "bounds": bounds, "beyond": self.faults()}


def compare_modes(
    reference: Side,
    exported: Side,
    questions: Questions,
    config: EvalConfig,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    seed: int = 0,
    answers: Path | None = None,
) -> BothModes:
    """Ask both, let both read the reference's answers, and compare.

    Args:
        config: limits, switch and batches of the answers; they are greedy, one to a problem.
        tokenizer: of the reference.
        answers: file of the reference's answers; those that it holds aren't asked again.

    Raises:
        EvaluationError: a task can't be asked or checked here, or nothing is asked in a mode.
    """
    require_both_modes(questions)
    config = replace(
        config, temperature=0.0, temperature_no_think=None, samples=None, samples_no_think=None
    )
    with TemporaryDirectory() as folder:
        files = answers or Path(folder) / "reference.jsonl", Path(folder) / "exported.jsonl"
        before, after = (
            _samples(side.responder, questions, config, file, seed)
            for side, file in zip((reference, exported), files, strict=True)
        )
    modes = tuple(
        _mode(
            mode,
            [sample for sample in before if sample["mode"] == mode],
            [sample for sample in after if sample["mode"] == mode],
            (reference.scores, exported.scores),
            tokenizer,
            reference.responder.marks.closing,
        )
        for mode in MODES
    )
    return BothModes(reference=reference.responder.model, questions=questions.origin, modes=modes)


def require_both_modes(questions: Questions) -> None:
    """Refuse a comparison that would pass since nothing was asked.

    Raises:
        EvaluationError: nothing is asked in a mode.
    """
    in_both = any(problems for _, problems in questions.tasks)
    asked = set(MODES) if in_both else {mode for mode, _ in questions.prompts}
    for mode in MODES:
        if mode not in asked:
            raise EvaluationError(
                f"no question in {mode} mode among {questions.origin}: nothing tells whether the export "
                "lost it; give tasks with --task FILE, or compare nothing (--no-check)"
            )


def _samples(
    responder: Responder, questions: Questions, config: EvalConfig, file: Path, seed: int
) -> list[Mapping[str, Any]]:
    from dualign.evaluation.evaluate import evaluate_model

    answers = SampleFile(file)
    samples: list[Mapping[str, Any]] = []
    if questions.tasks:
        samples += evaluate_model(responder, questions.tasks, config, answers, seed=seed).samples
    limits = {"think": config.max_new_tokens}
    limits["no_think"] = config.max_new_tokens_no_think or config.max_new_tokens
    requests = [
        sample_request(
            Prompt(text=text, mode=mode, messages=()),
            Sampling(max_new_tokens=limits[mode]),
            number,
            responder.identity,
        )
        for number, (mode, text) in enumerate(questions.prompts)
    ]
    for answer in require_all(ask(responder, requests, answers), responder, str(file)):
        samples.append(
            {
                "mode": answer.request.prompt.mode,
                "rendered": answer.request.prompt.text,
                "generated": answer.generated,
                "closed": answer.reply.closed,
                "leaked": answer.reply.leaked,
                "finished": answer.finished,
            }
        )
    return samples


def _mode(
    mode: Mode,
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    scores: tuple[Scorer, Scorer],
    tokenizer: "PreTrainedTokenizerBase",
    closing: str,
) -> ModeComparison:
    def rate(key: str, *, wanted: bool = True) -> Rate:
        of_both = ([float(bool(s[key]) == wanted) for s in side] for side in (before, after))
        return Rate.of(*of_both)

    trace: list[tuple[float, bool]] = []
    answer: list[tuple[float, bool]] = []
    for prompt, text in spread([(s["rendered"], s["generated"]) for s in before], _ANSWERS):
        read = token_divergences(*scores, tokenizer, prompt, text)
        end = _trace_end(text, closing) if mode == "think" else 0
        for kl, agreed, start in zip(read.kl, read.agreed, read.starts, strict=True):
            (trace if start < end else answer).append((kl, agreed))
    return ModeComparison(
        mode=mode,
        answers=len(before),
        accuracy=_accuracy(before, after),
        unleaked=rate("leaked", wanted=False),
        closed=rate("closed") if mode == "think" else None,
        finished=rate("finished"),
        same=sum(a["generated"] == b["generated"] for a, b in zip(before, after, strict=True)),
        trace=mean_divergence(trace) if mode == "think" else None,
        answer=mean_divergence(answer),
    )


def _trace_end(text: str, closing: str) -> int:
    """Return the character behind the mark that closes the trace; the text's end where none does."""
    place = text.find(closing)
    return len(text) if place < 0 else place + len(closing)


def _accuracy(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> Rate | None:
    """Return the accuracy on the problems of tasks; a graded answer counts by its score."""
    values = (
        [float(s.get("score", s["correct"])) for s in side if "correct" in s]
        for side in (before, after)
    )
    of_before, of_after = values
    return Rate.of(of_before, of_after) if of_before else None
