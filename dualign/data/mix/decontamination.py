"""Rows that hold a problem of an evaluation task: an index of the tasks' n-grams, and the look-up.

A row holds a problem when one of its texts shares n consecutive words with the problem, as GPT-3's
authors counted (arXiv 2005.14165, appendix C; n = 13), or when a turn is, as a whole, a problem
that is shorter than n words. N-grams that many problems of a task share are its phrasing and don't
count.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dualign.data.mix.ngrams import Hashes, ngram_hashes, shingles, word_hashes
from dualign.data.seeds import Indices
from dualign.tasks.base import Problem
from dualign.tasks.table import load_problems, load_tasks

_COMMON = 10
"""An n-gram that more problems of one task share is its phrasing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskProblem:
    """A problem of the evaluation by its names."""

    task: str
    id: str


@dataclass(frozen=True, kw_only=True)
class TaskIndex:
    """The n-grams of all problems. `grams` are sorted; `problem_index` has for each its problem.

    `short` are the problems of fewer than `ngram` words: hash of the whole -> problem.
    """

    ngram: int
    problems: tuple[TaskProblem, ...]
    grams: Hashes
    problem_index: Indices
    short: dict[int, int]

    def find(self, texts: Iterable[str]) -> TaskProblem | None:
        """Return the problem that one of the texts of a row holds."""
        for text in texts:
            hashes = word_hashes(text)
            problem = self.short.get(_whole(hashes)) if self.short and len(hashes) else None
            if problem is None:
                problem = self._shared(ngram_hashes(hashes, self.ngram))
            if problem is not None:
                return self.problems[problem]
        return None

    def _shared(self, grams: Hashes) -> int | None:
        if not len(grams) or not len(self.grams):
            return None
        nearest = np.searchsorted(self.grams, grams).clip(max=len(self.grams) - 1)
        same = np.flatnonzero(self.grams[nearest] == grams)
        return int(self.problem_index[nearest[same[0]]]) if len(same) else None


def index_tasks(paths: Sequence[str], ngram: int) -> TaskIndex:
    """Return the index of the problems of task files."""
    names: list[TaskProblem] = []
    grams: list[Hashes] = []
    problem_index: list[int] = []
    short: dict[int, int] = {}
    for task in load_tasks(paths):
        problems = load_problems(task.without_instruction())
        texts = [[word_hashes(text) for text in _questions(problem)] for problem in problems]
        phrasing = _common_ngrams(texts, ngram)
        for problem, hashes in zip(problems, texts, strict=True):
            number = len(names)
            names.append(TaskProblem(task=task.name, id=problem.id))
            ngrams = np.concatenate([ngram_hashes(text, ngram) for text in hashes])
            distinct = np.setdiff1d(ngrams, phrasing)
            grams.append(distinct)
            problem_index += [number] * len(distinct)
            if not len(distinct):
                short.update({_whole(text): number for text in hashes if len(text)})
    joined = np.concatenate(grams) if grams else np.empty(0, dtype=np.uint64)
    order = np.argsort(joined, kind="stable")
    return TaskIndex(
        ngram=ngram,
        problems=tuple(names),
        grams=joined[order],
        problem_index=np.array(problem_index, dtype=np.int64)[order],
        short=short,
    )


def _questions(problem: Problem) -> list[str]:
    """Return the user's turns, and the fields of the row that they quote: a prompt may add words to
    them.
    """
    turns = [str(turn["content"]) for turn in problem.messages if turn["role"] == "user"]
    prompt = "\n".join(turns)
    fields = [value for value in problem.extra.values() if isinstance(value, str) and value.strip()]
    return turns + [
        value for value in fields if value in prompt and value not in turns and " " in value
    ]


def _common_ngrams(texts: list[list[Hashes]], ngram: int) -> Hashes:
    """Return the n-grams that more than a few problems of a task share."""
    counts: Counter[int] = Counter()
    for hashes in texts:
        counts.update({int(gram) for text in hashes for gram in ngram_hashes(text, ngram)})
    return np.array([gram for gram, count in counts.items() if count > _COMMON], dtype=np.uint64)


def _whole(hashes: Hashes) -> int:
    return int(shingles(hashes, len(hashes))[0]) ^ len(hashes)
