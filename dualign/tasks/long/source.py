"""Tasks of a chosen length: `long:FORMS@LENGTHS[/LANGUAGES][*PROBLEMS][~SEED]`, lists by commas.

    long:needle@4k                              20 problems of 4,096 tokens in English
    long:all@4k,8k                              all thirteen forms at two lengths
    long:multi_key,tracking@8k/fr,de*50~7       50 problems each, from another seed

A length counts the prompt as the chat template renders it, and room for an answer, as RULER's does;
a trace comes on top.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dualign.config import nearest
from dualign.errors import EvaluationError
from dualign.switch import Switch
from dualign.tasks.base import Problem, Sizing
from dualign.tasks.long.draft import Draft, Draw
from dualign.tasks.long.fit import fitted
from dualign.tasks.long.forms import FORMS
from dualign.tasks.long.language import LANGUAGES, digest, language
from dualign.verifiers.base import Verifier
from dualign.verifiers.table import verifier_of

ANSWER_TOKENS = 128
"""Room for an answer in each length: the largest of RULER's. Theirs is smaller for some forms, where the
prompt ends with the start of the answer, which a trace would have to come before."""
_PREFIX = "long"
_ALL = "all"
_PROBLEMS = 20
_VERSION = 1  # of the problems; another one for the same reference
_REFERENCE = re.compile(
    r"(?P<forms>[\w,]+)@(?P<lengths>[\w,]+)(?:/(?P<languages>[\w,]+))?"
    r"(?:\*(?P<problems>\d+))?(?:~(?P<seed>\d+))?"
)
_LENGTH = re.compile(r"(\d+)(k?)")


@dataclass(frozen=True, kw_only=True, slots=True)
class LongTask:
    """Problems of one form at one length in one language."""

    form: str
    length: int
    language: str = "en"
    count: int = _PROBLEMS
    seed: int = 0
    max_new_tokens: int | None = None
    """None: a trace has the stage's limit"""
    max_new_tokens_no_think: int | None = ANSWER_TOKENS
    switch: Switch | None = None

    @property
    def name(self) -> str:
        seed = f"~{self.seed}" if self.seed else ""
        return f"{_PREFIX}:{self.form}@{length_text(self.length)}/{self.language}{seed}"

    @property
    def rows(self) -> str:
        return self.name

    @property
    def check(self) -> Verifier:
        return verifier_of("recall")

    @property
    def digest(self) -> str | None:
        content = json.dumps([_VERSION, asdict(self), digest(self.language)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def load_problems(self) -> tuple[Problem, ...]:
        """Return the problems with their shortest texts; `sizing` makes them as long as they are to be."""
        return tuple(self._problem(number) for number in range(self.count))

    def _problem(self, number: int) -> Problem:
        draw = Draw(seed=self.seed, form=self.form, number=number)
        draft = FORMS[self.form].draft(language(self.language), draw, self.length)
        problem = Problem(
            id=str(number),
            messages=_asked(draft.text(draft.smallest)),
            expected=list(draft.expected),
            extra={"length": self.length, "language": self.language, **draft.extra},
            line=number,
        )
        return replace(problem, sizing=_Sizing(task=self, draft=draft, problem=problem))

    def settings(self) -> dict[str, Any]:
        return asdict(self) | {"version": _VERSION}

    def without_instruction(self) -> "LongTask":
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sizing(Sizing):
    task: LongTask
    draft: Draft
    problem: Problem

    @property
    def tokens(self) -> int:
        return self.task.length - ANSWER_TOKENS

    def sized(self, count: Callable[[str], int]) -> Problem:
        text, tokens = fitted(self.draft, count, self.tokens, self.task.name)
        extra = {**self.problem.extra, "prompt_tokens": tokens}
        return replace(self.problem, messages=_asked(text), extra=extra)


def _asked(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def load(name: str) -> tuple[LongTask, ...]:
    """Return the tasks of a reference, without its `long:`.

    Raises:
        EvaluationError: it isn't written as one, or names what there isn't.
    """
    match = _REFERENCE.fullmatch(name)
    if match is None:
        # [long:needle,tracking@4k] is a list of two texts.
        quotes = "" if "@" in name else "; between brackets, a reference with commas needs quotes"
        raise EvaluationError(
            f"{_PREFIX}:{name}: expected {_PREFIX}:FORMS@LENGTHS, such as {_PREFIX}:needle@4k, or with more "
            f"{_PREFIX}:all@4k,8k/en,fr*50~7 (languages, number of problems, seed); "
            f"docs/long-context.md{quotes}"
        )
    forms = _listed(name, match["forms"], "form", [*FORMS], every=True)
    languages = _listed(name, match["languages"] or "en", "language", LANGUAGES)
    lengths = [_read_length(text, f"{_PREFIX}:{name}") for text in match["lengths"].split(",")]
    count = int(match["problems"] or _PROBLEMS)
    if count < 1:
        raise EvaluationError(f"{_PREFIX}:{name}: expected 1 problem or more, found {count}")
    return tuple(
        LongTask(form=form, length=length, language=code, count=count, seed=int(match["seed"] or 0))
        for form in forms
        for code in languages
        for length in dict.fromkeys(lengths)
    )


def names() -> Iterator[tuple[str, str]]:
    """Yield what can be asked for, as (name, kind), at one length."""
    yield from ((f"{form}@4k", "task") for form in FORMS)
    yield f"{_ALL}@4k", "group"


def reference(
    lengths: Sequence[str],
    *,
    forms: Sequence[str] = (_ALL,),
    languages: Sequence[str] = ("en",),
    problems: int | None = None,
    seed: int = 0,
) -> str:
    """Return the reference of all forms at all lengths in all languages."""
    return (
        f"{_PREFIX}:{','.join(forms)}@{','.join(lengths)}/{','.join(languages)}"
        + (f"*{problems}" if problems is not None else "")
        + (f"~{seed}" if seed else "")
    )


def _read_length(text: str, where: str) -> int:
    """Return a length in tokens: `4k` is 4,096.

    Raises:
        EvaluationError: it isn't one, or leaves no room for a question.
    """
    match = _LENGTH.fullmatch(text.lower())
    if match is None:
        raise EvaluationError(
            f"{where}: expected a length in tokens, such as 4k or 500, found {text!r}"
        )
    length = int(match[1]) * (1024 if match[2] else 1)
    if length <= ANSWER_TOKENS:
        raise EvaluationError(
            f"{where}: {length} tokens leave no room besides the {ANSWER_TOKENS} of an answer; "
            "choose 256 or more"
        )
    return length


def length_text(length: int) -> str:
    """Return a length as it is written: 4k, or 500."""
    return str(length) if length % 1024 else f"{length // 1024}k"


def read_name(name: str) -> LongTask | None:
    """Return the form, length and language of a task's name; None of a task of another source."""
    prefix, _, rest = name.partition(":")
    return load(rest)[0] if prefix == _PREFIX and _REFERENCE.fullmatch(rest) else None


def _listed(
    name: str, text: str, what: str, known: Sequence[str], *, every: bool = False
) -> Sequence[str]:
    names = list(dict.fromkeys(text.split(",")))
    if every and names == [_ALL]:
        return known
    for item in names:
        if item not in known:
            choices = nearest(item, [*known, *([_ALL] if every else [])])
            raise EvaluationError(f"{_PREFIX}:{name}: unknown {what} {item!r}{choices}")
    return names
