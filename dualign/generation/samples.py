"""Answers on disk, appended as they come, so that a crash loses one batch at most.

An evaluation's samples.jsonl, a pairs stage's generations.jsonl.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerRecord:
    """A model's answer to one request; `key` identifies model, prompt and settings."""

    key: str
    generated: str
    finished: bool
    usage: Mapping[str, int] | None = None
    """tokens as an endpoint counted them: `prompt`, `completion`, and perhaps `reasoning`"""
    token_ids: tuple[int, ...] = ()
    """of what was generated, where a part of it will be a prompt"""
    likelihoods: tuple[tuple[float, bool], ...] = ()
    """of texts that were scored in place of an answer: log-probability, and whether it is greedy"""

    def line(self) -> dict[str, Any]:
        """Return the object of its line; without usage, tokens or likelihoods where there are none."""
        line = {"key": self.key, "generated": self.generated, "finished": self.finished}
        line |= {} if self.usage is None else {"usage": dict(self.usage)}
        line |= {"token_ids": list(self.token_ids)} if self.token_ids else {}
        pairs = [list(pair) for pair in self.likelihoods]
        return line | ({"likelihoods": pairs} if pairs else {})


class SampleFile:
    """File of one stage: answers are appended; at the end the judged samples replace them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answered: dict[str, AnswerRecord] = {}
        if path.is_file():
            self._read()
        self.earlier = frozenset(self.answered)
        """keys of the answers that were there before"""

    def append(self, answers: Iterable[AnswerRecord]) -> None:
        """Append the answers and flush them to disk."""
        with self.path.open("a", encoding="utf-8") as file:
            for answer in answers:
                file.write(json.dumps(answer.line(), ensure_ascii=False) + "\n")
                self.answered[answer.key] = answer
            file.flush()
            os.fsync(file.fileno())

    def finish(self, samples: Iterable[Mapping[str, Any]]) -> None:
        """Replace the file with the judged samples; a later run reads the answers from them."""
        aside = self.path.with_name(f".{self.path.name}.new")
        with aside.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        aside.replace(self.path)

    def _read(self) -> None:
        # Bytes, since a crash may cut a character; at b"\n" alone, since JSON leaves U+2028 unescaped.
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            logger.warning(
                "%s: the last line was cut by a crash; that answer is generated again", self.path
            )
            os.truncate(self.path, len(whole))
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            self._parse(line, number)

    def _parse(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
            records = [_record(part) for part in (row, *_listed(row, "more"))]
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"{self.path}:{number}: expected a sample with key, generated and finished; "
                "delete the file and evaluate again, or name another folder"
            ) from None
        self.answered |= {record.key: record for record in records}


def _record(row: Mapping[str, Any]) -> AnswerRecord:
    return AnswerRecord(
        key=row["key"],
        generated=row["generated"],
        finished=row["finished"],
        usage=row.get("usage"),
        token_ids=tuple(_listed(row, "token_ids")),
        likelihoods=tuple((value, greedy) for value, greedy in _listed(row, "likelihoods")),
    )


def _listed(row: Mapping[str, Any], key: str) -> list[Any]:
    """Return a list; nothing where files of earlier versions have a field of a task's rows."""
    value = row.get(key)
    return value if isinstance(value, list) else []
