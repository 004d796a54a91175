"""Arithmetic in words, made from a seed: `words:fr`, or `words:all` for six languages.

The problems are the same in every language, so that what differs is the language. They need no data
set: texts are in word_problems.yaml, numbers and names are drawn here.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dualign.config import nearest, read_yaml
from dualign.errors import EvaluationError
from dualign.tasks.base import Problem
from dualign.tasks.listed import ListedTask
from dualign.verifiers.table import verifier_of

_PREFIX, _ALL = "words", "all"
_COUNT, _SEED = 24, 0
_RESULTS: tuple[Callable[[int, int, int], int], ...] = (
    lambda a, b, c: a + b - c,
    lambda a, b, c: a * b + c,
    lambda a, b, c: (a + b) * c,
    lambda a, b, c: a * b - c,
    lambda a, b, c: a * b * c,
    lambda a, b, c: a + b + c,
    lambda a, b, c: (a + b) * c,
    lambda a, b, c: a + 2 * b - c,
)
"""The answers to the questions of word_problems.yaml, in their order."""


def load(name: str) -> tuple[ListedTask, ...]:
    """Return the task of a language, or those of all.

    Raises:
        EvaluationError: no such language.
    """
    languages = list(_texts()["languages"])
    if name not in (*languages, _ALL):
        raise EvaluationError(
            f"{_PREFIX}:{name}: no problems in this language{nearest(name, languages)}; expected one of "
            f"{', '.join(languages)}, or {_ALL}"
        )
    return tuple(map(_task, languages if name == _ALL else [name]))


def names() -> Iterator[tuple[str, str]]:
    """Yield what can be asked for, as (name, kind)."""
    yield from ((name, "task") for name in _texts()["languages"])
    yield _ALL, "group"


@cache
def _texts() -> Mapping[str, Any]:
    texts: Mapping[str, Any] = read_yaml(Path(__file__).with_suffix(".yaml")).value
    return texts


@cache
def _task(language: str) -> ListedTask:
    texts = _texts()
    of_language = texts["languages"][language]
    draw = random.Random(_SEED)  # the same draws in every language
    problems, bare = [], []
    for number in range(_COUNT):
        which = number % len(_RESULTS)
        # a > c and b > c: nothing is given away that isn't there.
        a, b, c = (draw.randint(*limits) for limits in ((7, 12), (5, 9), (2, 4)))
        name = draw.choice(texts["names"])
        question = of_language["questions"][which].format(a=a, b=b, c=c, name=name)
        bare.append(question)
        content = f"{question}\n{of_language['end']}"
        problems.append(
            Problem(
                id=str(number + 1),
                messages=({"role": "user", "content": content},),
                expected=str(_RESULTS[which](a, b, c)),
                extra={"language": language},
                line=number + 1,
            )
        )
    return ListedTask(
        name=f"{_PREFIX}_{language}",
        rows=f"{_PREFIX}:{language}",
        check=verifier_of("integer"),
        listed=tuple(problems),
        bare=tuple(bare),
    )
