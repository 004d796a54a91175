"""Task files: YAML with rows, a prompt, and the verifier of the answers.

name: sums-4
rows: sums-4.jsonl          # next to this file; each row has a question and an answer
prompt: "{question}"        # absent: the row's own `messages` or `prompt`
verifier: integer           # or with settings: {kind: contains, need: any}
"""

import json
import re
import string
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dualign.config import parse, read_yaml
from dualign.errors import EvaluationError, excerpt
from dualign.hashing import sha256
from dualign.switch import Switch
from dualign.tasks.base import Problem, Turn
from dualign.verifiers.base import Verifier
from dualign.verifiers.table import VerifierSettings, settings_problems, verifier_of

_ROW_KEYS = frozenset({"id", "prompt", "messages", "answer"})


@dataclass(frozen=True, kw_only=True, slots=True)
class FileTask:
    """A task file of an evaluation: rows, how they are asked, and what checks the answers."""

    name: str
    """the task's name in tables and in metrics.json"""
    rows: str
    """a .jsonl file, relative to the task file; one row each line"""
    verifier: VerifierSettings
    """what compares an answer with the row's `answer`: its name, or keys with its `kind`"""
    prompt: str | None = None
    """the question, with fields of the row in braces; absent: the row's `messages`, or `prompt` as
    text or messages
    """
    answer: str | None = None
    """the expected answer, with fields of the row in braces; absent: the row's `answer`; a field
    alone may be a list or an object, if the verifier takes them
    """
    instruction: str | None = None
    """text that is added to the question, after an empty line; the same in both modes"""
    max_new_tokens: int | None = None
    """limit of an answer in think mode; absent: the stage's"""
    max_new_tokens_no_think: int | None = None
    """limit of an answer in no_think mode; absent: max_new_tokens, else the stage's"""
    samples: int | None = None
    """answers to each problem in modes that sample; absent: the stage's"""
    switch: Switch | None = None
    """what switches the modes for this task; absent: the stage's"""
    language: str | None = None
    """language of the questions, as in `fr` (ISO 639-1): whether trace and answer are in it, too, is
    counted; absent: the row's `language`
    """

    @property
    def check(self) -> Verifier:
        """The verifier with its settings."""
        return verifier_of(self.verifier)

    @property
    def digest(self) -> str | None:
        return None

    def load_problems(self) -> tuple[Problem, ...]:
        """Return the problems in the order of the file.

        Raises:
            EvaluationError: no rows, a row without question or answer, or an id given twice.
        """
        rows = _read_rows(Path(self.rows))
        problems = tuple(_problem(self, number, row) for number, row in rows)
        if not problems:
            raise EvaluationError(f"{self.rows}: holds no rows; task {self.name} needs one or more")
        seen: set[str] = set()
        for problem in problems:
            if problem.id in seen:
                raise EvaluationError(
                    f"{self.rows}: the id {problem.id!r} is given twice; ids name rows"
                )
            seen.add(problem.id)
        return problems

    def settings(self) -> dict[str, Any]:
        """Return the keys of the file, without its rows, and the hashes of the verifier's files."""
        files = {Path(file).name: sha256(Path(file)) for file in self.check.files}
        keys = asdict(self) | {"rows": None}
        for key in ("language", "samples"):  # added later: hashes stay
            if keys[key] is None:
                del keys[key]
        return keys | ({"verifier_files": files} if files else {})

    def without_instruction(self) -> "FileTask":
        return replace(self, instruction=None)

    def problems(self) -> list[tuple[str, str]]:
        issues = settings_problems(self.verifier)
        for key in ("name", "rows"):
            if not getattr(self, key).strip():
                issues.append((key, "expected a name, found nothing"))
        if self.language is not None and not re.fullmatch(r"[a-z]{2}", self.language):
            issues.append(("language", f"expected a code such as fr, found {self.language!r}"))
        for key, limit in (
            ("max_new_tokens", self.max_new_tokens),
            ("max_new_tokens_no_think", self.max_new_tokens_no_think),
            ("samples", self.samples),
        ):
            if limit is not None and limit < 1:
                issues.append((key, f"expected 1 or more, found {limit}"))
        for key in ("prompt", "answer"):
            issues += template_problems(key, getattr(self, key))
        return issues


def read_task(path: str | Path) -> FileTask:
    """Load a task file; `rows` becomes an absolute path.

    Raises:
        EvaluationError: the file is missing.
        ConfigError: with every problem of the file.
    """
    path = Path(path)
    if not path.is_file():
        raise EvaluationError(
            f"{path}: no such task file; expected YAML with name, rows and verifier"
        )
    document = read_yaml(path)
    task = parse(FileTask, document.value, document)
    document.raise_problems()
    assert task is not None, "no problems means a task"
    if isinstance(task.verifier, Verifier):
        task = replace(task, verifier=task.verifier.located(path.parent))
    return replace(task, rows=str((path.parent / task.rows).resolve()))


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise EvaluationError(
            f"{path}: no such file; expected the task's rows, one JSON object a line"
        )
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                row = json.loads(text)
            except UnicodeDecodeError as error:
                raise EvaluationError(f"{path}:{number}: isn't UTF-8 ({error})") from None
            except json.JSONDecodeError as error:
                raise EvaluationError(f"{path}:{number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise EvaluationError(
                    f"{path}:{number}: expected an object, found {text.strip()[:40]}"
                )
            yield number, row


def _problem(task: FileTask, number: int, row: dict[str, Any]) -> Problem:
    where = f"{task.rows}:{number}"
    expected = row.get("answer", task.check.expected_in(row))
    if task.answer is not None:
        expected = fill_answer(task.check, task.answer, row, f"{where}: the answer")
    if expected in (None, "", [], {}) and task.check.needs_expected:
        raise EvaluationError(
            f"{where}: no 'answer' (found {', '.join(sorted(row))}); the verifier {task.check.kind} "
            "compares with it; name the field in the task, e.g. answer: '{expected_answer}'"
        )
    return Problem(
        id=str(row.get("id", number)),
        messages=_with_instruction(_turns(task, row, where), task.instruction, where),
        expected=str(expected) if isinstance(expected, int | float) else expected,
        extra=({} if task.language is None else {"language": task.language})
        | {
            key: value
            for key, value in row.items()
            if key not in _ROW_KEYS and isinstance(value, str | int | float | bool)
        },
        line=number,
        samples=task.samples,
    )


def template_problems(key: str, template: str | None) -> list[tuple[str, str]]:
    """Return what is wrong with the braces of a template, as (key, message)."""
    try:
        list(string.Formatter().parse(template or ""))
    except ValueError as error:
        return [(key, f"{error}; write {{{{ and }}}} for braces that are text")]
    return []


def fill_answer(verifier: Verifier, template: str, row: Mapping[str, Any], what: str) -> Any:
    """Fill the template of an expected answer; a lone field keeps its list if the verifier takes lists.

    Raises:
        EvaluationError: the template asks for what is no plain value; `what` names it.
    """
    parts = list(string.Formatter().parse(template))
    name = parts[0][1] if len(parts) == 1 else None
    if verifier.takes_lists and name and parts == [("", name, "", None)]:
        with suppress(KeyError, IndexError, AttributeError, TypeError):
            value = string.Formatter().get_field(name, (), row)[0]
            if isinstance(value, list | dict):
                return value
    return _filled(template, row, what)


def _filled(template: str, row: Mapping[str, Any], what: str) -> str:
    """Fill a template with fields of a row; EvaluationError if it asks for what is no plain value."""
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    try:
        values = {name: string.Formatter().get_field(name, (), row)[0] for name in names}
        text = template.format_map(row)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise EvaluationError(
            f"{what} {template!r} asks for {error}; the row has {', '.join(sorted(row))}"
        ) from None
    for name, value in values.items():
        if value is None or isinstance(value, list | dict):
            raise EvaluationError(
                f"{what} {template!r} asks for {name!r}, which is {excerpt(value)}: expected text. "
                "Messages are asked as they are if the task has no prompt."
            )
    return text


def _turns(task: FileTask, row: Mapping[str, Any], where: str) -> list[Turn]:
    if task.prompt is not None:
        return [{"role": "user", "content": _filled(task.prompt, row, f"{where}: the prompt")}]
    name = next((name for name in ("messages", "prompt") if row.get(name)), None)
    if name is None:
        raise EvaluationError(
            f"{where}: neither 'messages' nor 'prompt' (found {', '.join(sorted(row))}); "
            "name the field in the task, e.g. prompt: '{question}'"
        )
    turns = row[name]
    if name == "prompt" and isinstance(turns, str):
        return [{"role": "user", "content": turns}]
    if not (isinstance(turns, list) and all(_is_turn(turn) for turn in turns)):
        raise EvaluationError(f"{where}: {name!r} has to be a list of role and content")
    if turns[-1]["role"] == "assistant":
        raise EvaluationError(
            f"{where}: {name!r} ends with the assistant's turn, which is the model's"
        )
    return list(turns)


def _is_turn(turn: object) -> bool:
    return (
        isinstance(turn, dict)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
    )


def _with_instruction(turns: list[Turn], instruction: str | None, where: str) -> tuple[Turn, ...]:
    if not instruction:
        return tuple(turns)
    if turns[-1]["role"] != "user":
        raise EvaluationError(
            f"{where}: the last turn isn't the user's, so the instruction has no place"
        )
    last = {**turns[-1], "content": f"{turns[-1]['content']}\n\n{instruction}"}
    return (*turns[:-1], last)
