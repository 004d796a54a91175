"""Calls of functions from the Berkeley leaderboard: `bfcl:simple`, or `bfcl:simple@FOLDER`.

The rows are read in BFCL's published form (versions 3 and 4). Functions go to the model by its own
chat template, and calls are compared as trees (dualign/verifiers/calls.py). BFCL's own package asks
models by handlers of its own, each with one prompt form, so it takes no model object.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dualign.config import nearest
from dualign.errors import EvaluationError, excerpt
from dualign.tasks.base import Problem
from dualign.tasks.listed import ListedTask, stamp
from dualign.verifiers.table import verifier_of

_PREFIX = "bfcl"
_HUB = "gorilla-llm/Berkeley-Function-Calling-Leaderboard"
_PACKAGE = "bfcl_eval"
_CATEGORIES = {
    "simple": ("simple_python", "simple"),  # its names in versions 4 and 3
    "multiple": ("multiple",),
    "parallel": ("parallel",),
    "parallel_multiple": ("parallel_multiple",),
    "irrelevance": ("irrelevance",),
    "live_simple": ("live_simple",),
    "live_multiple": ("live_multiple",),
    "live_parallel": ("live_parallel",),
    "live_parallel_multiple": ("live_parallel_multiple",),
    "live_irrelevance": ("live_irrelevance",),
    "live_relevance": ("live_relevance",),
}
"""The files of each category."""
_GROUPS = {
    "non_live": tuple(name for name in _CATEGORIES if not name.startswith("live")),
    "live": tuple(name for name in _CATEGORIES if name.startswith("live")),
    "all": tuple(_CATEGORIES),
}
_OTHERS = {
    "java": "calls in Java",
    "javascript": "calls in JavaScript",
    "multi_turn": "several turns with functions that run",
    "exec": "functions that run",
    "memory": "an agent with a memory that runs",
    "web_search": "an agent that searches the web",
    "format_sensitivity": "prompt forms of BFCL's own, not the model's template",
}
"""What BFCL asks besides, and can't be asked here."""
_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
"""BFCL's names of types as JSON Schema has them."""


def load(name: str) -> tuple[ListedTask, ...]:
    """Return the tasks of a category or group.

    Raises:
        EvaluationError: no such category, its files can't be had, or a row can't be read.
    """
    category, _, folder = name.partition("@")
    if category not in _CATEGORIES and category not in _GROUPS:
        other = next((why for part, why in _OTHERS.items() if part in category), None)
        reason = f" is about {other}, which isn't asked" if other else " is no category of BFCL"
        hint = "" if other else nearest(category, [*_CATEGORIES, *_GROUPS])
        raise EvaluationError(
            f"{_PREFIX}:{category}{reason}{hint}; expected one of {', '.join(_CATEGORIES)}, or "
            f"{', '.join(_GROUPS)} for several"
        )
    place = Path(folder).expanduser() if folder else _folder()
    return tuple(_read_task(name, place) for name in _GROUPS.get(category, (category,)))


def names() -> Iterator[tuple[str, str]]:
    """Yield what can be asked for, as (name, kind)."""
    yield from ((name, "task") for name in _CATEGORIES)
    yield from ((name, "group") for name in _GROUPS)


def _folder() -> Path:
    """Return a folder with BFCL's files: its package's, else the Hub's."""
    if spec := find_spec(_PACKAGE):
        return Path(str(spec.origin)).parent / "data"
    from huggingface_hub import snapshot_download

    try:
        files = ["BFCL_v*.json", "possible_answer/*.json"]
        return Path(snapshot_download(_HUB, repo_type="dataset", allow_patterns=files))
    except OSError as error:
        raise EvaluationError(
            f"{_PREFIX}: its rows can't be had here. Tried: the data set {_HUB} of the Hub "
            f"({type(error).__name__}), and the package bfcl-eval, which brings them. Where there is a "
            f"network, fetch one of them, copy it and name the folder: {_PREFIX}:simple@FOLDER"
        ) from error


def _read_task(category: str, folder: Path) -> ListedTask:
    file = _file(folder, category)
    path = folder / "possible_answer" / file.name
    return _task(category, file, path, stamp(file, path))


@cache
def _task(category: str, file: Path, path: Path, stamp: Any) -> ListedTask:
    """Read a task once; `stamp` tells files that were written again from those before."""
    answers = {}
    if "relevance" not in category:
        answers = {_id(row, place): row for place, row in _rows(path)}
    problems: dict[str, Problem] = {}
    for number, (place, row) in enumerate(_rows(file), 1):
        problem = _problem(row, category, answers, place, number)
        if problem.id in problems:
            raise EvaluationError(f"{place}: the id {problem.id!r} is given twice; ids name rows")
        problems[problem.id] = problem
    if not problems:
        raise EvaluationError(f"{file}: holds no rows")
    return ListedTask(
        name=f"{_PREFIX}_{category}",
        rows=f"{_PREFIX}:{category} ({file.name})",
        dataset={"path": _HUB, "config": category, "split": None},
        check=verifier_of("calls"),
        listed=tuple(problems.values()),
    )


def _file(folder: Path, category: str) -> Path:
    """Return a category's file, of the newest version in the folder."""
    pattern = re.compile(rf"BFCL_v(\d+)_({'|'.join(_CATEGORIES[category])})\.jsonl?")
    files = {
        int(match[1]): file
        for file in sorted(folder.glob("BFCL_v*"))
        if (match := pattern.fullmatch(file.name))
    }
    if not files:
        raise EvaluationError(
            f"{_PREFIX}:{category}@{folder}: no file BFCL_v4_{_CATEGORIES[category][0]}.json there; expected "
            f"the files of {_HUB}, with the folder possible_answer"
        )
    return files[max(files)]


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the object of each line; the files end in .json and hold JSON lines."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{file}: can't be read ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise EvaluationError(f"{file}:{number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise EvaluationError(f"{file}:{number}: expected an object, found {excerpt(line)}")
        yield f"{file}:{number}", row


def _id(row: Mapping[str, Any], place: str) -> str:
    if not isinstance(row.get("id"), str):
        raise EvaluationError(f"{place}: no 'id'; expected a row of BFCL")
    return str(row["id"])


def _problem(
    row: Mapping[str, Any],
    category: str,
    answers: Mapping[str, Mapping[str, Any]],
    place: str,
    number: int,
) -> Problem:
    name, functions = _id(row, place), row.get("function")
    turns = row.get("question")
    single = turns[0] if isinstance(turns, list) and len(turns) == 1 else None
    if not (isinstance(single, list) and isinstance(functions, list)):
        raise EvaluationError(
            f"{place}: expected a question of one turn and its functions (found {', '.join(sorted(row))})"
        )
    expected: dict[str, Any] = {"functions": [_without_words(item, place) for item in functions]}
    if category.endswith("irrelevance"):
        expected["calls"] = []
    elif category != "live_relevance":
        truth = answers.get(name, {}).get("ground_truth")
        if not isinstance(truth, list) or not truth:
            raise EvaluationError(
                f"{place}: the id {name!r} has no ground_truth in possible_answer"
            )
        expected["calls"] = [
            {_plain_name(key): value for key, value in call.items()} for call in truth
        ]
    return Problem(
        id=name,
        messages=tuple(dict(turn) for turn in single),
        expected=expected,
        extra={},
        line=number,
        tools=tuple(map(_tool, functions)),
    )


def _plain_name(name: str) -> str:
    """Return a function's name without dots, as BFCL writes it for models that take functions."""
    return name.replace(".", "_")


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    name, parameters = str(function["name"]), function.get("parameters") or {"type": "dict"}
    return {
        "type": "function",
        "function": {
            **function,
            "name": _plain_name(name),
            "parameters": _json_schema(parameters),
        },
    }


def _json_schema(schema: Any) -> Any:
    """Return a schema with the names of types that JSON Schema has, at any depth."""
    if isinstance(schema, list):
        return [_json_schema(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    plain = {
        key: value if key in ("enum", "default") else _json_schema(value)
        for key, value in schema.items()
    }
    kind = plain.get("type")
    return {**plain, "type": _JSON_TYPES.get(kind, kind)} if isinstance(kind, str) else plain


def _without_words(function: Any, place: str) -> dict[str, Any]:
    """Return what a call is compared with: the name, and the types of the parameters."""
    parameters = function.get("parameters") if isinstance(function, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(parameters, Mapping) or not isinstance(name, str):
        raise EvaluationError(f"{place}: a function without name or parameters")
    types = {
        key: {part: item[part] for part in ("type", "items") if part in item}
        for key, item in (parameters.get("properties") or {}).items()
    }
    required = list(parameters.get("required") or ())
    return {
        "name": _plain_name(name),
        "parameters": {"properties": types, "required": required},
    }
