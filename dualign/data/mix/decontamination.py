"""Rows that hold a problem of an evaluation task: an index of the tasks' n-grams, and the look-up.

A row holds a problem when one of its texts has n words in a row in common with the problem, as GPT-3's
authors counted (arXiv 2005.14165, appendix C; n = 13), or when a turn is, as a whole, a problem that is
shorter than n words. Words in a row that many problems of a task share are its phrasing and don't
count.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dualign.data.mix.words import Hashes, ngram_hashes, shingles, word_hashes
from dualign.data.seeds import Indices
from dualign.tasks import Problem, load_problems, load_task

_COMMON = 10
"""An n-gram that more problems of one task share is its phrasing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """The problem that a row holds."""

    task: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class TaskIndex:
    """`grams` are sorted, `owner` says whose each is; `whole` are problems shorter than `ngram` words."""

    ngram: int
    problems: tuple[Hit, ...]
    grams: Hashes
    owner: Indices
    whole: dict[int, int]

    def find(self, texts: Iterable[str]) -> Hit | None:
        """The problem that one of the texts of a row holds."""
        for text in texts:
            hashes = word_hashes(text)
            found = self.whole.get(_whole(hashes)) if self.whole and len(hashes) else None
            if found is None:
                found = self._shared(ngram_hashes(hashes, self.ngram))
            if found is not None:
                return self.problems[found]
        return None

    def _shared(self, grams: Hashes) -> int | None:
        if not len(grams) or not len(self.grams):
            return None
        places = np.searchsorted(self.grams, grams).clip(max=len(self.grams) - 1)
        same = np.flatnonzero(self.grams[places] == grams)
        return int(self.owner[places[same[0]]]) if len(same) else None


def index_tasks(paths: Sequence[str], ngram: int) -> TaskIndex:
    """The index of the problems of task files."""
    hits: list[Hit] = []
    grams: list[Hashes] = []
    owner: list[int] = []
    whole: dict[int, int] = {}
    for path in paths:
        task = replace(load_task(path), instruction=None)
        problems = load_problems(task)
        texts = [[word_hashes(text) for text in _questions(problem)] for problem in problems]
        common = _common(texts, ngram)
        for problem, hashes in zip(problems, texts, strict=True):
            number = len(hits)
            hits.append(Hit(task=task.name, problem=problem.id))
            own = np.setdiff1d(np.concatenate([ngram_hashes(one, ngram) for one in hashes]), common)
            grams.append(own)
            owner += [number] * len(own)
            if not len(own):
                whole.update({_whole(one): number for one in hashes if len(one)})
    joined = np.concatenate(grams) if grams else np.empty(0, dtype=np.uint64)
    order = np.argsort(joined, kind="stable")
    return TaskIndex(
        ngram=ngram,
        problems=tuple(hits),
        grams=joined[order],
        owner=np.array(owner, dtype=np.int64)[order],
        whole=whole,
    )


def _questions(problem: Problem) -> list[str]:
    """The user's turns, and the fields of the row that they quote: a prompt may add words to them."""
    turns = [str(turn["content"]) for turn in problem.messages if turn["role"] == "user"]
    said = "\n".join(turns)
    fields = [one for one in problem.extra.values() if isinstance(one, str) and one.strip()]
    return turns + [one for one in fields if one in said and one not in turns and " " in one]


def _common(texts: list[list[Hashes]], ngram: int) -> Hashes:
    """The n-grams that more than a few problems of a task share."""
    seen: Counter[int] = Counter()
    for hashes in texts:
        seen.update({int(gram) for one in hashes for gram in ngram_hashes(one, ngram)})
    return np.array([gram for gram, count in seen.items() if count > _COMMON], dtype=np.uint64)


def _whole(hashes: Hashes) -> int:
    return int(shingles(hashes, len(hashes))[0]) ^ len(hashes)
