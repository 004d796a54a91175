"""Print which kinds of rows a template can train, with the text and the mask of one row a mode."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dualign.data.conversation import MODES
from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.doctor.trials import TemplateTrials, Trial
from dualign.inspect.terminal import colored

_MARKS = ("\u27e6", "\u27e7")
_TRAINED = "trained"


def show_trials(trials: TemplateTrials, console: Console) -> None:
    """Print the table of verdicts, why rows are refused, and a row of each mode."""
    _line(f"template {trials.template.name}, switch: {_switch(trials)}", console)
    console.print(_table(trials))
    for trial, count in trials.reasons():
        rows = f"{count} rows" if count > 1 else trial.kind
        _line(f"{trial.mode}, {rows}: {trial.code}: {trial.message}", console)
    plain = console.color_system is None  # a pipe or a file
    for mode in MODES:
        if sample := trials.sample(mode):
            marked = f"; {_MARKS[0]}...{_MARKS[1]} is supervised" if plain else ""
            _line(f"\n{mode}, {sample.kind}{marked}:", console)
            text = colored(
                sample.ids, sample.labels, trials.tokenizer, marks=_MARKS if plain else None
            )
            console.print(text, soft_wrap=plain)


def trials_record(trials: TemplateTrials) -> dict[str, Any]:
    """Return the trials as JSON has them."""
    switch = trials.template.switch
    return {
        "template": trials.template.name,
        "switch": switch and {mode: dict(switch.of(mode)) for mode in MODES},
        "modes_differ": trials.template.switches,
        "rows": [_entry(trial, trials) for trial in trials.trials],
    }


def _entry(trial: Trial, trials: TemplateTrials) -> dict[str, Any]:
    entry: dict[str, Any] = {"kind": trial.kind, "mode": trial.mode, "trained": not trial.code}
    if trial.code:
        return entry | {"code": trial.code, "message": trial.message}
    learnt = [
        token for token, label in zip(trial.ids, trial.labels, strict=True) if label != IGNORE_INDEX
    ]
    decode = trials.tokenizer.decode
    return entry | {"text": str(decode(trial.ids)), "supervised": str(decode(learnt))}


def _switch(trials: TemplateTrials) -> str:
    template = trials.template
    if template.switches:
        return str(template.switch)
    return "none: both modes have one prompt, so rows of one mode alone can be trained"


def _table(trials: TemplateTrials) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("rows", *MODES):
        table.add_column(name, no_wrap=True)
    verdicts = {(trial.kind, trial.mode): trial.code for trial in trials.trials}
    for kind in dict.fromkeys(trial.kind for trial in trials.trials):
        cells = (_verdict(verdicts[kind, mode]) for mode in MODES)
        table.add_row(kind, *cells)
    return table


def _verdict(code: str) -> Text:
    return Text(code, style="red") if code else Text(_TRAINED, style="green")


def _line(text: str, console: Console) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
