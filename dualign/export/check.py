"""Whether llama.cpp, loaded with an exported file, reads and answers as transformers does.

Conversations go through the embedded template and llama.cpp's tokenizer, and have to come out as
the same tokens. Then both answer in both modes, greedily. Where the file is exact (f32, f16) they
have to agree, token by token, up to where llama.cpp's two best are too near to tell: it multiplies
in float16, so a lead of less than `NEAR_TIE` is chance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.data.conversation import MODES, Mode
from dualign.export.llama_runtime import Choice, Runtime, load
from dualign.generation.thinking import split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXACT = frozenset({"f32", "f16"})
NEAR_TIE = 0.1  # nats
QUESTIONS = (
    "What is the capital of France?",
    "Write one short sentence about the sea.",
    "What is 7 + 5?",
)
NEW_TOKENS = 24
_CONTEXT = 4096
_HI = {"role": "user", "content": "Hi"}
_TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße, 你好 😁\n\n  3.14 == 22/7?"},
    {"role": "assistant", "content": "No.\n\n```py\n3.14 == 22 / 7  # False\n```"},
    {"role": "user", "content": "I've 1234 don't's"},
]
_CONVERSATIONS: tuple[tuple[str, list[dict[str, str]], dict[str, Any]], ...] = (
    ("a question", [_HI], {}),
    ("a question in think mode", [_HI], {"enable_thinking": True}),
    ("a question in no_think mode", [_HI], {"enable_thinking": False}),
    ("/think in the system message", [{"role": "system", "content": "Help. /think"}, _HI], {}),
    ("/no_think in the system message", [{"role": "system", "content": "/no_think"}, _HI], {}),
    ("a conversation in think mode", _TALK, {"enable_thinking": True}),
    ("a conversation in no_think mode", _TALK, {"enable_thinking": False}),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A question in a mode, and what transformers answers."""

    question: str
    mode: Mode
    prompt: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    finished: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The same question, answered by llama.cpp next to transformers."""

    question: str
    mode: Mode
    expected: str
    found: str
    tokens: int
    """transformers' tokens, the end of turn included"""
    agreed: int
    """the first of them that are the same"""
    margin: float | None
    """llama.cpp's lead at the first that isn't, in nats; None where all are, or it isn't known"""
    thought: bool
    leaked: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the check of one file found."""

    runtime: str
    conversations: int
    """rendered and compared"""
    answers: tuple[Answer, ...]
    faults: tuple[str, ...]


def ask_transformers(model: str, tokenizer: "PreTrainedTokenizerBase") -> list[Asked]:
    """The questions in both modes, answered greedily in float32."""
    from dualign.generation.generate import generate, tokenize
    from dualign.generation.sampling import Sampling
    from dualign.models.inference import load_model

    asked = [(question, mode) for question in QUESTIONS for mode in MODES]
    prompts = [
        _render(tokenizer, [{"role": "user", "content": question}], enable_thinking=mode == "think")
        for question, mode in asked
    ]
    weights = load_model(model, dtype="float32")
    made = generate(
        weights,
        tokenizer,
        prompts,
        Sampling(max_new_tokens=NEW_TOKENS),
        progress="transformers answers",
    )
    return [
        Asked(
            question=question,
            mode=mode,
            prompt=prompt,
            prompt_ids=tuple(ids),
            answer_ids=one.token_ids,
            finished=one.finished,
        )
        for (question, mode), prompt, ids, one in zip(
            asked, prompts, tokenize(tokenizer, prompts), made, strict=True
        )
    ]


def check(
    file: Path,
    type: str,
    runtime: str,
    tokenizer: "PreTrainedTokenizerBase",
    asked: Sequence[Asked],
    ends: frozenset[int],
) -> Verdict:
    """Load the file and compare; `ends` are the tokens that end a turn."""
    loaded = load(file, runtime, context=_CONTEXT)
    try:
        compared, faults = _conversations(loaded, tokenizer)
        answers = []
        for one in asked:
            made = loaded.greedy(one.prompt_ids, NEW_TOKENS)
            answers.append(_answer(one, made, tokenizer, ends))
    finally:
        loaded.close()
    if type in EXACT:
        faults += [_disagreement(one) for one in answers if not _agrees(one)]
    return Verdict(
        runtime=runtime, conversations=compared, answers=tuple(answers), faults=tuple(faults)
    )


def _conversations(loaded: Runtime, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, list[str]]:
    compared, faults = 0, []
    for name, messages, given in _CONVERSATIONS:
        try:
            expected = _render(tokenizer, messages, **given)
        except Exception:  # jinja2 raises what a template makes it raise: it takes no such thing
            continue
        compared += 1
        found = loaded.prompt(messages, **given)
        ids = tokenizer(expected, add_special_tokens=False)["input_ids"]
        if (got := loaded.tokens(found)) != ids:
            faults.append(_difference(name, expected, found, ids, got, tokenizer))
    return compared, faults


def _render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]], **given: Any
) -> str:
    return str(
        tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, **given
        )
    )


def _difference(
    name: str,
    expected: str,
    found: str,
    expected_ids: Sequence[int],
    found_ids: Sequence[int],
    tokenizer: "PreTrainedTokenizerBase",
) -> str:
    place = _common(expected_ids, found_ids)
    around = [
        tokenizer.convert_ids_to_tokens(list(ids[max(place - 2, 0) : place + 4]))
        for ids in (expected_ids, found_ids)
    ]
    what = "other tokens" if expected == found else "another text"
    return (
        f"{name} becomes {what} in llama.cpp, from token {place} on: transformers has {around[0]}, "
        f"llama.cpp {around[1]}"
    )


def _answer(
    asked: Asked,
    made: Sequence[Choice],
    tokenizer: "PreTrainedTokenizerBase",
    ends: frozenset[int],
) -> Answer:
    stop = next((i for i, one in enumerate(made) if one.token in ends), None)
    ids = [one.token for one in made[:stop]]
    expected = [*asked.answer_ids, *([-1] if asked.finished else [])]
    agreed = _common(expected, [*ids, *([-1] if stop is not None else [])])
    differs = agreed < len(expected)
    text = str(tokenizer.decode(ids))
    parsed = split(asked.prompt, text, mode=asked.mode, finished=stop is not None)
    return Answer(
        question=asked.question,
        mode=asked.mode,
        expected=str(tokenizer.decode(list(asked.answer_ids))),
        found=text,
        tokens=len(expected),
        agreed=agreed,
        margin=made[agreed].margin if differs and agreed < len(made) else None,
        thought=bool(parsed.thinking),
        leaked=parsed.leaked,
    )


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many are the same at the start."""
    pairs = zip(first, second, strict=False)
    return next(
        (i for i, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second))
    )


def _agrees(answer: Answer) -> bool:
    tie = answer.margin is not None and answer.margin <= NEAR_TIE
    return answer.agreed == answer.tokens or tie


def _disagreement(answer: Answer) -> str:
    lead = "an unknown lead" if answer.margin is None else f"a lead of {answer.margin:.2f} nats"
    return (
        f"{answer.question!r} in {answer.mode} mode: the answers part at token {answer.agreed} of "
        f"{answer.tokens}, with {lead} (a tie would be below {NEAR_TIE}): "
        f"transformers {answer.expected!r}, llama.cpp {answer.found!r}"
    )
