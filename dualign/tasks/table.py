"""Where tasks come from: a file, or a source that a reference names before its colon."""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dualign.config import nearest
from dualign.errors import DataError, EvaluationError
from dualign.model_ref import StageRef
from dualign.tasks.base import Problem, Task, expected_of
from dualign.tasks.files import read_task
from dualign.tasks.suites import suite_names

_SOURCES: Mapping[str, str] = {
    "long": "dualign.tasks.long.source",
    "lm_eval": "dualign.tasks.lm_eval",
    "bfcl": "dualign.tasks.bfcl",
    "hub": "dualign.tasks.hub",
    "words": "dualign.tasks.word_problems",
}
"""The module of each source, as `lm_eval` in `lm_eval:gsm8k`; its `load(name)` returns the tasks,
and `names()` what can be named.
"""
_PACKAGES: Mapping[str, str] = {"lm_eval": "lm-eval"}
"""The package that a source's tasks are from, whose version they depend on."""
_FILES = (".yaml", ".yml")
_PLACED = ("bfcl", "hub")
"""Sources whose names may have `@` and a file or folder behind them."""
_WORD = re.compile(r"[^\s'\",\[\]{}]+")


def source_of(reference: str | Path) -> str | None:
    """Return the source that a reference names; None for a file."""
    prefix, colon, _ = str(reference).partition(":")
    return prefix if colon and prefix in _SOURCES else None


def place_of(reference: str) -> tuple[str, str]:
    """Split off the path that a reference of a source names: `hub:aime25@rows.jsonl` -> its head with
    the `@`, and the path; two empty texts if it names none.
    """
    source, _, name = reference.partition(":")
    if source_of(reference) in _PLACED and "@" in name:
        return f"{source}:{name.partition('@')[0]}@", name.partition("@")[2]
    return (f"{source}:", name) if source_of(reference) and name.endswith(_FILES) else ("", "")


def files_of(reference: str) -> list[Path]:
    """Return the files that a reference of a source names, and those that its YAML names; [] for a name."""
    head, place = place_of(reference)
    path = Path(place).expanduser()
    if head and path.is_dir() and "@" in head:
        return sorted(file for file in path.rglob("*.json*") if file.is_file())
    if not head or not path.is_file():
        return []
    if path.suffix not in _FILES:
        return [path]
    words = _WORD.findall(path.read_text("utf-8", errors="replace"))
    modules = [f"{word.partition('.')[0]}.py" for word in words]  # of `!function module.name`
    named = {folder / word for word in (*words, *modules) for folder in (path.parent, Path())}
    return [path, *sorted({file.resolve() for file in named if file.is_file()} - {path.resolve()})]


def located(reference: str, folder: Path) -> str:
    """Return a reference with the path that it names made absolute, if `folder` has it."""
    head, place = place_of(reference)
    path = folder / Path(place).expanduser()
    return f"{head}{path.resolve()}" if head and path.exists() else reference


def version_of(reference: str) -> str:
    """Return the version of the package whose tasks a reference names; "" for a source of our own."""
    package = _PACKAGES.get(str(source_of(reference)))
    if package is None:
        return ""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def load_reference(reference: str | Path) -> tuple[Task, ...]:
    """Return the tasks that a reference names: one for a file, some for a group of a source.

    Raises:
        EvaluationError: no such file or task, or its source isn't installed.
        ConfigError: with every problem of a file.
    """
    source = source_of(reference)
    if source is None:
        prefix, colon, _ = str(reference).partition(":")
        if colon and prefix.isidentifier() and not Path(reference).is_file():
            hint = nearest(prefix, list(_SOURCES))
            raise EvaluationError(f"{reference}: no such file, and no source {prefix!r}{hint}")
        return (read_task(reference),)
    tasks: tuple[Task, ...] = import_module(_SOURCES[source]).load(str(reference).partition(":")[2])
    return tasks


def listing(pattern: str) -> Iterator[str]:
    """Yield a line for each name that a source knows and `pattern` fits, `*` and `?` in it stand for any text.

    Without a pattern it is a line for each source. A pattern that begins with a source asks it alone.
    """
    for name, about in suite_names():
        if pattern in f"suite:{name}":
            yield f"--suite {name}  {about}"
    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    asked = {source_of(pattern)} - {None} or set(_SOURCES)
    for source, module in _SOURCES.items():
        if source not in asked:
            continue
        try:
            names = list(import_module(module).names())
        except EvaluationError as error:
            yield str(error)
            continue
        if not pattern:
            yield f"{source}: {len(names)} names; `dualign eval --list PATTERN` finds some"
            continue
        for name, kind in names:
            texts = (name.lower(), f"{source}:{name}".lower())
            if any(fnmatchcase(text, glob.lower()) for text in texts):
                yield f"{source}:{name}  {kind}"


def _loaded(references: Sequence[str | Path]) -> list[tuple[Task, ...]]:
    """Return the tasks of each reference; EvaluationError with all that can't be had."""
    loaded: list[tuple[Task, ...]] = []
    reasons: list[EvaluationError] = []
    for reference in references:
        try:
            loaded.append(load_reference(reference))
        except EvaluationError as error:
            reasons.append(error)
    if len(reasons) == 1:
        raise reasons[0]
    if reasons:
        lines = dict.fromkeys(map(str, reasons))
        raise EvaluationError(
            f"{len(reasons)} of {len(references)} tasks can't be had; list the others under tasks to ask "
            "those alone\n" + "\n".join(lines)
        )
    return loaded


def load_tasks(references: Sequence[str | Path]) -> tuple[Task, ...]:
    """Load the tasks of several references.

    Raises:
        EvaluationError: two of them have the same name.
    """
    tasks: list[Task] = []
    origins: dict[str, str | Path] = {}
    for reference, loaded in zip(references, _loaded(references), strict=True):
        for task in loaded:
            if task.name in origins:
                raise EvaluationError(
                    f"{origins[task.name]} and {reference} are both named {task.name!r}; give each task "
                    "its own name"
                )
            origins[task.name] = reference
            tasks.append(task)
    return tuple(tasks)


def unknown_tasks(references: Sequence[str | Path]) -> str:
    """Return why the tasks can't be read yet, in words: a stage that hasn't run writes one; "" if they can."""
    refs = [ref for path in references if (ref := StageRef.parse(str(path)))]
    names = ", ".join(dict.fromkeys(ref.name for ref in refs))
    return f"known when stage {names} has run" if refs else ""


def load_problems(task: Task, *, limit: int | None = None, seed: int = 0) -> tuple[Problem, ...]:
    """Return the task's problems in order; with `limit`, a seeded sample of them.

    Raises:
        EvaluationError: they can't be had, or one can't be read.
    """
    problems = task.load_problems()
    if limit is None or limit >= len(problems):
        return problems
    drawn = random.Random(f"{seed}:{task.name}").sample(range(len(problems)), limit)
    return tuple(problems[i] for i in sorted(drawn))


def load_questions(
    references: Sequence[str | Path],
    *,
    limit: int | None = None,
    seed: int = 0,
    checked: bool = True,
) -> list[tuple[Task, tuple[Problem, ...]]]:
    """Load tasks and their problems; if answers will be checked, refuse what can't be before it is asked.

    Raises:
        EvaluationError: as from `load_tasks` and `load_problems`; a verifier that can't work here;
            a row whose expected answer its verifier can't read.
    """
    questions = []
    for task in load_tasks(references):
        problems = load_problems(task, limit=limit, seed=seed)
        questions.append((task, problems))
        if not checked:
            continue
        try:
            task.check.require()
        except DataError as error:
            raise EvaluationError(f"task {task.name}: {error}") from None
        for problem in problems:
            expected_of(task, problem)
    return questions
