"""Check an exported file: llama.cpp has to read and answer as transformers does.

Conversations are rendered by the embedded template and tokenized by llama.cpp; the tokens have to
be the same. Then both answer greedily in both modes. For an exact file (f32, f16) the answers have
to agree token by token, up to a near tie of llama.cpp's two best tokens: it multiplies in float16,
so a lead of less than `_NEAR_TIE` nats is chance.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.data.conversation import MODES, Mode
from dualign.data.think_tags import CLOSE, OPEN
from dualign.export.llama_runtime import GreedyToken, LlamaRuntime, load
from dualign.generation.thinking import TraceMarks, split, trace_marks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_EXACT = frozenset({"f32", "f16"})
_NEAR_TIE = 0.1  # nats
QUESTIONS = (
    "What is the capital of France?",
    "Write one short sentence about the sea.",
    "What is 7 + 5?",
)
_NEW_TOKENS = 24
_CONTEXT = 4096
_WORDS = 20
_HI = {"role": "user", "content": "Hi"}
_TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße, 你好 😁\n\n  3.14 == 22/7?"},
    {"role": "assistant", "content": "No.\n\n```py\n3.14 == 22 / 7  # False\n```"},
    {"role": "user", "content": "I've 1234 don't's"},
]
_PLAIN: tuple[tuple[str, list[dict[str, str]]], ...] = (
    ("a question", [_HI]),
    ("/think in the system message", [{"role": "system", "content": "Help. /think"}, _HI]),
    ("/no_think in the system message", [{"role": "system", "content": "/no_think"}, _HI]),
)
_IN_BOTH_MODES = (("a question", [_HI]), ("a conversation", _TALK))


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceAnswer:
    """transformers' answer to a question in a mode."""

    question: str
    mode: Mode
    prompt: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    leads: tuple[float, ...]
    """lead of the best token over the second in nats: at each token, and behind the last"""
    finished: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerComparison:
    """llama.cpp's answer next to transformers'."""

    question: str
    mode: Mode
    expected: str
    actual: str
    tokens: int
    """number of transformers' tokens, the end of turn included"""
    agreed: int
    """number of leading tokens that agree"""
    margin: float | None
    """lead in nats at the first that differs (transformers' where llama.cpp tells none), or None"""
    thought: bool
    leaked: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """Result of the check of one file."""

    runtime: str
    conversations: int
    """number of conversations that were rendered and compared"""
    answers: tuple[AnswerComparison, ...]
    faults: tuple[str, ...]


def ask_transformers(model: str, tokenizer: "PreTrainedTokenizerBase") -> list[ReferenceAnswer]:
    """Answer the questions in both modes with transformers, greedily and in float32."""
    from dualign.generation.generate import generate, tokenize
    from dualign.generation.sampling import Sampling
    from dualign.models.loading import load_model
    from dualign.models.prompts import prompt, switch_of

    questions = [(question, mode) for question in QUESTIONS for mode in MODES]
    switch = switch_of(tokenizer)
    prompts = [
        prompt(tokenizer, [{"role": "user", "content": question}], mode, switch)
        for question, mode in questions
    ]
    weights = load_model(model, dtype="float32")
    answers = generate(
        weights,
        tokenizer,
        prompts,
        Sampling(max_new_tokens=_NEW_TOKENS),
        label="transformers answers",
    )
    return [
        ReferenceAnswer(
            question=question,
            mode=mode,
            prompt=prompt,
            prompt_ids=tuple(ids),
            answer_ids=answer.token_ids,
            leads=_leads(weights, ids, answer.token_ids),
            finished=answer.finished,
        )
        for (question, mode), prompt, ids, answer in zip(
            questions, prompts, tokenize(tokenizer, prompts), answers, strict=True
        )
    ]


def _leads(
    model: "PreTrainedModel", prompt: Sequence[int], answer: Sequence[int]
) -> tuple[float, ...]:
    import torch

    ids = torch.tensor([[*prompt, *answer]])
    with torch.inference_mode():
        logits = model(ids, logits_to_keep=len(answer) + 1).logits[0].float()
    best, second = logits.topk(2).values.unbind(-1)
    return tuple((best - second).tolist())


def check(
    file: Path,
    type: str,
    runtime: str,
    tokenizer: "PreTrainedTokenizerBase",
    references: Sequence[ReferenceAnswer],
    eos_ids: frozenset[int],
) -> CheckResult:
    """Load the file and compare; `eos_ids` are the tokens that end a turn."""
    loaded = load(file, runtime, context=_CONTEXT)
    try:
        conversations, faults = _check_prompts(loaded, tokenizer)
        marks = trace_marks(tokenizer)
        answers = []
        for reference in references:
            tokens = loaded.greedy(reference.prompt_ids, _NEW_TOKENS)
            answers.append(_compare(reference, tokens, tokenizer, eos_ids, marks))
    finally:
        loaded.close()
    if type in _EXACT:
        faults += [_disagreement(answer) for answer in answers if not _agrees(answer)]
    return CheckResult(
        runtime=runtime, conversations=conversations, answers=tuple(answers), faults=tuple(faults)
    )


def _check_prompts(
    loaded: LlamaRuntime, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[int, list[str]]:
    """Render and tokenize all conversations on both sides; return their number and the faults."""
    compared, faults = 0, []
    for name, messages, kwargs in _conversations(tokenizer):
        try:
            expected = _render(tokenizer, messages, **kwargs)
        except Exception:  # a template may refuse such a conversation, with any exception
            continue
        compared += 1
        actual = loaded.prompt(messages, **kwargs)
        expected_ids = tokenizer(expected, add_special_tokens=False)["input_ids"]
        actual_ids = loaded.tokens(actual)
        if actual_ids != expected_ids:
            what = "other tokens" if expected == actual else "another text"
            place = _common(expected_ids, actual_ids)
            expected_tokens, actual_tokens = (
                tokenizer.convert_ids_to_tokens(list(ids[max(place - 2, 0) : place + 4]))
                for ids in (expected_ids, actual_ids)
            )
            faults.append(
                f"{name} becomes {what} in llama.cpp, from token {place} on: transformers has "
                f"{expected_tokens}, llama.cpp {actual_tokens}"
            )
    return compared, faults


def _conversations(
    tokenizer: "PreTrainedTokenizerBase",
) -> Iterator[tuple[str, list[dict[str, Any]], dict[str, Any]]]:
    """Yield name, messages and template variables of what is rendered on both sides."""
    from dualign.models.prompts import arguments, switch_of

    switch = switch_of(tokenizer)
    yield from ((name, messages, {}) for name, messages in _PLAIN)
    if words := _added_words(tokenizer):
        talk = [{"role": "user", "content": f"What is {' '.join(words)} or {words[-1]}?"}]
        yield "a question with added tokens", talk, {}
    for name, messages in _IN_BOTH_MODES:
        for mode in MODES:
            yield f"{name} in {mode} mode", *arguments(messages, mode, switch)


def _added_words(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the last tokens that were added as words, not as marks of a format."""
    added = tokenizer.added_tokens_decoder.values()
    words = [token.content for token in added if not token.special]
    return [word for word in words if word not in (OPEN, CLOSE)][-_WORDS:]


def _render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]], **kwargs: Any
) -> str:
    return str(
        tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, **kwargs
        )
    )


def _compare(
    reference: ReferenceAnswer,
    tokens: Sequence[GreedyToken],
    tokenizer: "PreTrainedTokenizerBase",
    eos_ids: frozenset[int],
    marks: TraceMarks,
) -> AnswerComparison:
    stop = next((i for i, entry in enumerate(tokens) if entry.token in eos_ids), None)
    ids = [entry.token for entry in tokens[:stop]]
    # -1 stands for the end of turn, whichever token it is.
    expected = [*reference.answer_ids, *([-1] if reference.finished else [])]
    agreed = _common(expected, [*ids, *([-1] if stop is not None else [])])
    differs = agreed < len(expected)
    margin = tokens[agreed].margin if differs and agreed < len(tokens) else None
    if differs and margin is None:
        margin = reference.leads[agreed]
    text = str(tokenizer.decode(ids))
    reply = split(
        reference.prompt,
        text,
        mode=reference.mode,
        finished=stop is not None,
        marks=marks,
    )
    return AnswerComparison(
        question=reference.question,
        mode=reference.mode,
        expected=str(tokenizer.decode(list(reference.answer_ids))),
        actual=text,
        tokens=len(expected),
        agreed=agreed,
        margin=margin,
        thought=bool(reply.thinking),
        leaked=reply.leaked,
    )


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _agrees(answer: AnswerComparison) -> bool:
    tie = answer.margin is not None and answer.margin <= _NEAR_TIE
    return answer.agreed == answer.tokens or tie


def _disagreement(answer: AnswerComparison) -> str:
    return (
        f"{answer.question!r} in {answer.mode} mode: the answers differ from token {answer.agreed} of "
        f"{answer.tokens} on, with a lead of {answer.margin:.2f} nats (a tie is below {_NEAR_TIE}): "
        f"transformers {answer.expected!r}, llama.cpp {answer.actual!r}"
    )
