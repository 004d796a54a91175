"""Rows without traces, and a teacher on loopback that says of each what a script says."""

import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualign.data.config import QuestionData, SourceConfig
from dualign.generation.config import Endpoint
from dualign.sft.config import TracesStage
from tests.generation.servers import Reply, chat_reply

SUMS = {"1+2": 3, "4+5": 9, "2+2": 4, "7+1": 8}
SCRIPT = {
    "1+2": (("so it is 3", 3), ("so 3", 3)),
    "4+5": (("so 9", 9), ("so it is 9", 9)),
    "2+2": (("so 5", 5), ("so 4", 4)),
    "7+1": (("so 9", 9),),
}
"""What the teacher says in turn, over and over: the first two right, the third at every second try, the last never."""
COLUMNS = {"prompt": "question", "completion": "reply"}
LINES = [
    {"id": f"q{n}", "question": f"What is {sum_}?", "reply": f"It is {right}.", "sum": right}
    for n, (sum_, right) in enumerate(SUMS.items())
]


@dataclass
class Teacher:
    """The answer of a proxy: the next of the question's script. A token is a character."""

    script: Mapping[str, Sequence[tuple[str, int]]] = field(default_factory=lambda: SCRIPT)
    asked: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, body: Mapping[str, Any]) -> Reply:
        text = body["messages"][-1]["content"]
        question = next(question for question in self.script if question in text)
        with self._lock:
            said = self.script[question]
            trace, number = said[self.asked[question] % len(said)]
            self.asked[question] += 1
        if not body["chat_template_kwargs"]["enable_thinking"]:
            return 200, {}, chat_reply(f"{question} makes {number}")
        count = len(trace) + len(str(number))
        return 200, {}, chat_reply(f"{number}", reasoning=trace, tokens=count)


def write(file: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def stage(model: str | Endpoint, file: Path, **keys: Any) -> TracesStage:
    """A stage on rows like LINES; a server's address is asked one thing after the other."""
    if isinstance(model, str) and model.startswith("http"):
        model = Endpoint(url=model, name="teacher", concurrency=1, max_wait_seconds=0.05)
    source = SourceConfig(path=str(file), columns=keys.pop("columns", COLUMNS))
    defaults = {"verifier": "integer", "expected": "{sum}", "max_new_tokens": 40}
    data = QuestionData(sources=(source,), conflicts=keys.pop("conflicts", "error"))
    return TracesStage(name="traces", model=model, data=data, **{**defaults, **keys})


def written(work: Path) -> list[dict[str, Any]]:
    lines = (work / "traces.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def traces_of(work: Path) -> list[str]:
    """The traces of think rows, in order."""
    return [
        row["messages"][-1]["reasoning_content"] for row in written(work) if row["mode"] == "think"
    ]


def recipe(folder: Path, rows: Path, model: dict[str, Any], **keys: Any) -> Path:
    """A recipe with one stage, as JSON, which is YAML."""
    source = {"path": str(rows), "columns": COLUMNS}
    entry = {"name": "traces", "kind": "traces", "model": model, "data": {"sources": [source]}}
    entry |= {"verifier": "integer", "expected": "{sum}", **keys}
    file = folder / "recipe.yaml"
    file.write_text(json.dumps({"output_dir": str(folder / "runs"), "stages": [entry]}))
    return file
