"""Tasks of lm-evaluation-harness: `lm_eval:gsm8k`, or the YAML file of one, `lm_eval:my/task.yaml`.

Questions, few-shot examples, filters, metrics and their versions are lm-eval's own, from its task
objects. A group that aggregates (mmlu) is one task; other groups and tags are the tasks in them.
"""

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dualign.config import nearest_key
from dualign.errors import EvaluationError, excerpt
from dualign.tasks.lm_eval_task import UNSAFE, LmEvalTask

_PREFIX = "lm_eval"
_YAML = (".yaml", ".yml")
_GROUP = re.compile(r"""^group:\s*["']?([^"'\s#]+)""", re.MULTILINE)
_UNSAFE = re.compile(r"^unsafe_code:\s*(\w+)", re.MULTILINE)
_INCLUDE = re.compile(r"""^include:\s*["']?([^"'\s#]+)""", re.MULTILINE)
# What simple_evaluate of lm-eval 0.4.13 sets before it loads tasks: some shuffle choices as they load.
_RANDOM_SEED, _NUMPY_SEED = 0, 1234


def load(name: str) -> tuple[LmEvalTask, ...]:
    """Return the tasks of a name or of a YAML file.

    Raises:
        EvaluationError: lm-eval isn't installed, knows no such task, or can't load it here; or the
            task runs code that a model wrote.
    """
    _require()
    if not name.endswith(_YAML):
        return _named(name)
    path = Path(name).expanduser()
    if not path.is_file():
        raise EvaluationError(
            f"{_PREFIX}:{name}: no such file; expected the YAML of an lm-eval task, or a name of "
            "`dualign eval --list`"
        )
    group = _GROUP.search(path.read_text("utf-8", errors="replace"))
    if group is None:
        return _of_file(path.resolve(), name)
    return _tasks(group[1], name, _index(str(path.resolve().parent)))


def names() -> Iterator[tuple[str, str]]:
    """Yield what can be asked for, as (name, kind): tasks, groups and tags."""
    _require()
    index = _index()
    for kind, listed in (
        ("task", index.all_subtasks),
        ("group", index.all_groups),
        ("tag", index.all_tags),
    ):
        yield from ((name, kind) for name in listed)


def _require() -> None:
    """Refuse if lm-eval isn't installed."""
    if find_spec("lm_eval") is None:
        raise EvaluationError(
            f'{_PREFIX}: tasks of lm-evaluation-harness need its package: pip install "dualign[lm-eval]"'
        )


@cache
def _named(name: str) -> tuple[LmEvalTask, ...]:
    if file := _shipped(name):
        return _of_file(file, name)
    index = _index()
    if name not in index.task_index:
        name_near = nearest_key(name, index.all_tasks)
        hint = f" (did you mean {name_near!r}?)" if name_near else ""
        raise EvaluationError(
            f"{_PREFIX}:{name}: lm-eval knows no such task{hint}; "
            "`dualign eval --list PATTERN` finds names"
        )
    return _tasks(name, name, index)


def _shipped(name: str) -> Path | None:
    """Return the file in which lm-eval has a task: found in a hundredth of the time that its index takes."""
    spec = find_spec("lm_eval")
    places = (spec and spec.submodule_search_locations) or []
    line = re.compile(rf"""^task:\s*["']?{re.escape(name)}["']?\s*$""".encode(), re.MULTILINE)
    for place in places:
        for file in sorted((Path(place) / "tasks").rglob("*.yaml")):
            content = file.read_bytes()
            if line.search(content) and not _GROUP.search(content.decode("utf-8", "replace")):
                return file
    return None


def _of_file(file: Path, name: str) -> tuple[LmEvalTask, ...]:
    from lm_eval.tasks import TaskManager

    if _is_unsafe(file):
        raise EvaluationError(f"{_PREFIX}:{name}: {UNSAFE}")
    return _tasks(str(file), name, TaskManager(include_defaults=False))


def _is_unsafe(file: Path) -> bool:
    """Return whether a task's YAML, or one that it includes, says that it runs code of a model."""
    if not file.is_file():
        return False
    text = file.read_text("utf-8", errors="replace")
    own = _UNSAFE.search(text)
    if own:
        return own[1].lower() == "true"
    included = _INCLUDE.findall(text)
    return any(_is_unsafe(file.parent / other) for other in included)


@cache
def _index(folder: str | None = None) -> Any:
    """Return lm-eval's index of all its tasks, and those of a folder, which takes some seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder)


def _tasks(spec: str, name: str, manager: Any) -> tuple[LmEvalTask, ...]:
    try:
        with _seeded():
            loaded = manager.load([spec])
    except Exception as error:  # code of tasks can raise anything
        raise EvaluationError(f"{_PREFIX}:{name}: {_why(error)}") from error
    groups = loaded.get("groups", {})
    inside = {child for group in groups.values() for child in group.child_names}
    roots = [group for key, group in groups.items() if key not in inside]
    roots += [task for key, task in loaded["tasks"].items() if key not in inside]
    tasks = tuple(task for root in roots for task in expanded(root, name))
    for task in tasks:
        task.require()
    return tasks


def expanded(item: Any, reference: str) -> Iterator[LmEvalTask]:
    """Yield the tasks of one of lm-eval's tasks or groups."""
    if not hasattr(item, "get_all_tasks"):
        yield LmEvalTask(name=item.task_name, reference=reference, members=(item,))
    elif item.has_aggregation:
        members = tuple(item.get_all_tasks())
        yield LmEvalTask(name=item.name, reference=reference, members=members, group=item)
    else:
        for child in item:
            yield from expanded(child, reference)


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed what lm-eval seeds before it loads tasks, and leave the process's draws as they were."""
    import numpy as np

    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(_RANDOM_SEED)
    np.random.seed(_NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


def _why(error: Exception) -> str:
    """Return why a task can't be loaded, and what to do."""
    from datasets.exceptions import DatasetsError

    text = excerpt(" ".join(str(error).split()))
    if isinstance(error, ModuleNotFoundError):
        return f"its code needs the package {error.name}: pip install {error.name}"
    if isinstance(error, OSError | DatasetsError):
        return (
            f"its data can't be had here ({type(error).__name__}: {text}). Tried: the Hub and the cache "
            "of datasets (HF_HOME). Run it once where there is a network, or copy that cache; or point "
            "a YAML of your own at local files (dataset_path: json)"
        )
    return f"lm-eval can't load it ({type(error).__name__}: {text})"
