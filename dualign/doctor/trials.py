"""A template on trial: rows of ten kinds in both modes, through training's own encoder."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.conversation import MODES, Mode
from dualign.data.text.template import ChatTemplate
from dualign.data.tokens.encoding import EncodedRow, ExampleEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "its name"}},
                "required": ["city"],
            },
        },
    }
]
_SYSTEM = {"role": "system", "content": "You answer in one word."}
_QUESTIONS = ("What is 2 + 2?", "And 3 + 3?", "And 4 + 4?")
_ANSWERS = ("Four.", "Six.", "Eight.")
_TRACE = "The question is short, so I reason briefly."
_LONGEST = 1 << 30

_Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A row of one kind and mode, as training takes it. `code` is its fault, or empty; `parts` are
    the documents that the template makes of it.
    """

    kind: str
    mode: Mode
    code: str = ""
    message: str = ""
    ids: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()
    parts: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateTrials:
    """All trials of a template, with the tokenizer that reads their tokens."""

    template: ChatTemplate
    tokenizer: "PreTrainedTokenizerBase"
    trials: tuple[Trial, ...]

    def sample(self, mode: Mode) -> Trial | None:
        """Return the fullest row of a mode that can be trained, as one document if there is one."""
        trained = [trial for trial in self.trials if trial.mode == mode and not trial.code]
        return max(trained, key=lambda trial: (trial.parts == 1, len(trial.ids)), default=None)

    def reasons(self) -> Iterator[tuple[Trial, int]]:
        """Yield each reason of a mode with its first trial, and how many trials have it."""
        first: dict[tuple[str, str], Trial] = {}
        counts = Counter((trial.mode, trial.code) for trial in self.trials if trial.code)
        for trial in self.trials:
            first.setdefault((trial.mode, trial.code), trial)
        yield from ((first[key], count) for key, count in counts.items())


def try_rows(tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate) -> TemplateTrials:
    """Return a trial of each kind of row in each mode."""
    encoder = ExampleEncoder(
        source=SourceConfig(path="trial"),
        data=DataConfig(
            sources=(SourceConfig(path="trial"),), conflicts="drop", max_tokens=_LONGEST
        ),
        tokenizer=tokenizer,
        template=template,
        rows=np.arange(1),
    )
    trials = tuple(
        _trial(kind, mode, _encoded(encoder, row))
        for mode in MODES
        for kind, row in _rows(mode).items()
    )
    return TemplateTrials(template=template, tokenizer=tokenizer, trials=trials)


def _encoded(encoder: ExampleEncoder, row: _Row) -> EncodedRow:
    return encoder.encode({name: [value] for name, value in row.items()}, [0])[0]


def _trial(kind: str, mode: Mode, row: EncodedRow) -> Trial:
    if row.fault is not None:
        return Trial(kind=kind, mode=mode, code=row.fault.code, message=row.fault.what)
    return Trial(
        kind=kind,
        mode=mode,
        ids=tuple(row.entry["input_ids"]),
        labels=tuple(row.entry["labels"]),
        parts=len(row.entry["parts"]),
    )


def _rows(mode: Mode) -> dict[str, _Row]:
    """Return rows by their kinds."""
    talk = _talk(mode)
    first = _call(mode, "Oslo")
    both = {**first, "tool_calls": [*first["tool_calls"], *_call(mode, "Rome", "2")["tool_calls"]]}
    asked = {"role": "user", "content": "What is the weather in Oslo?"}
    answered = [_result("1", "rain"), _said(mode, "Rain.")]
    kinds: dict[str, Sequence[_Row]] = {
        "one turn": talk[:2],
        "two turns": talk[:4],
        "three turns": talk,
        "system text": [_SYSTEM, *talk[:2]],
        "system, three turns": [_SYSTEM, *talk],
        "a call": [asked, first],
        "text and a call": [asked, {**first, "content": "Let me look."}],
        "call, result, answer": [asked, first, *answered],
        "two calls": [asked, both, _result("1", "rain"), _result("2", "sun"), *answered[1:]],
        "system, call, result": [_SYSTEM, asked, first, *answered, *talk[:2]],
    }
    return {
        kind: {
            "messages": [dict(turn) for turn in turns],
            "mode": mode,
            "tools": _TOOLS if any("tool_calls" in turn for turn in turns) else [],
        }
        for kind, turns in kinds.items()
    }


def _talk(mode: Mode) -> list[_Row]:
    return [
        turn
        for question, answer in zip(_QUESTIONS, _ANSWERS, strict=True)
        for turn in ({"role": "user", "content": question}, _said(mode, answer))
    ]


def _said(mode: Mode, content: str) -> dict[str, Any]:
    trace = {"reasoning_content": _TRACE} if mode == "think" else {}
    return {"role": "assistant", "content": content, **trace}


def _call(mode: Mode, city: str, number: str = "1") -> dict[str, Any]:
    function = {"name": "weather", "arguments": {"city": city}}
    call = {"id": f"call0000{number}", "type": "function", "function": function}
    return {**_said(mode, ""), "tool_calls": [call]}


def _result(number: str, content: str) -> _Row:
    return {
        "role": "tool",
        "content": content,
        "name": "weather",
        "tool_call_id": f"call0000{number}",
    }
