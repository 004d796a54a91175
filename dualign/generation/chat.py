"""Chat in the terminal: `dualign chat MODEL`.

Answers stream, thinking is dimmed, and /think and /no_think switch the mode of later turns.
The history holds answers without their thinking, which would only fill the context.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from dualign.data.conversation import Mode
from dualign.errors import EvaluationError
from dualign.generation.answers import Prompt
from dualign.generation.budgets import Budget
from dualign.generation.config import Endpoint, model_label
from dualign.generation.sampling import Sampling
from dualign.generation.speakers import Speaker, open_speaker
from dualign.generation.thinking import TraceMarks, prompt_opens_block, split
from dualign.switch import Switch

_HELP = (
    "/think and /no_think switch the mode (a question may follow). "
    "/budget N closes traces after N tokens, /budget none doesn't. "
    "/reset forgets the conversation, /quit ends it. Ctrl-C stops an answer."
)


def chat(
    model: str | Endpoint,
    *,
    mode: Mode = "think",
    max_new_tokens: int = 512,
    temperature: float = 0.6,
    top_p: float = 0.95,
    budget: int | None = None,
    seed: int = 0,
    dtype: str = "auto",
    switch: Switch | None = None,
    console: Console | None = None,
) -> None:
    """Chat with a model until /quit or the end of the input, which may be a pipe.

    With a `budget`, traces are closed after so many tokens, and `max_new_tokens` is the answer's.
    """
    console = console or Console(highlight=False)
    with suppress(ImportError):  # line editing and history, if this Python has them
        import readline  # noqa: F401
    session = _Session(
        speaker=open_speaker(model, dtype=dtype, switch=switch),
        console=console,
        mode=mode,
        sampling=Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p),
        seed=seed,
        budget=None if budget is None else Budget(tokens=budget),
    )
    console.print(Text(f"{model_label(model)}\n{_HELP}", style="dim"))
    for line in _lines(session):
        if not session.handle(line):
            return


def _lines(session: "_Session") -> Iterator[str]:
    while True:
        try:
            prompt = Text(f"\n[{session.mode}] > ", style="bold")
            yield session.console.input(prompt, markup=False)
        except (EOFError, KeyboardInterrupt):
            session.console.print()
            return


@dataclass(kw_only=True, slots=True)
class _Session:
    """State of a conversation."""

    speaker: Speaker
    console: Console
    mode: Mode
    sampling: Sampling
    seed: int
    budget: Budget | None = None
    history: list[dict[str, str]] = field(default_factory=list)
    turns: int = 0

    def handle(self, line: str) -> bool:
        """Run a command or answer a question; return False to end the conversation."""
        command, _, rest = line.strip().partition(" ")
        match command:
            case "/quit" | "/exit":
                return False
            case "/reset":
                self.history.clear()
                self._note("forgotten")
            case "/help":
                self._note(_HELP)
            case "/think" | "/no_think":
                self._switch("think" if command == "/think" else "no_think")
                if rest.strip():
                    self._answer(rest.strip())
            case "/budget":
                self._set_budget(rest.strip())
            case _ if command.startswith("/"):
                self._note(f"{command}: no such command. {_HELP}")
            case "":
                pass
            case _:
                self._answer(line.strip())
        return True

    def _switch(self, mode: Mode) -> None:
        self.mode = mode
        probe = [{"role": "user", "content": "?"}]
        if self._prompt(probe, "think").text == self._prompt(probe, "no_think").text:
            self._note(f"mode: {mode}, but this model's chat template has no mode switch")
        else:
            self._note(f"mode: {mode}")

    def _set_budget(self, text: str) -> None:
        if text == "none":
            self.budget = None
        elif text.isdecimal():
            self.budget = Budget(tokens=int(text))
        elif text:
            self._note(f"/budget {text}: expected a number of tokens, or none")
            return
        self._note(f"budget: {self.budget.tokens if self.budget else 'none'}")

    def _answer(self, question: str) -> None:
        messages = [*self.history, {"role": "user", "content": question}]
        prompt = self._prompt(messages, self.mode)
        budget = self.budget if self.mode == "think" else None
        if refusal := self.speaker.refusal(prompt, self.sampling, budget):
            self._note(refusal)
            return
        self.turns += 1
        marks = self.speaker.marks
        writer = _Writer(self.console, marks, thinking=prompt_opens_block(prompt.text, marks))
        seed = self.seed + self.turns
        try:
            finished = self.speaker.speak(prompt, self.sampling, seed, writer.write, budget)
        except EvaluationError as error:  # of an endpoint: the conversation may go on
            writer.end()
            self._note(str(error))
            return
        writer.end()
        if not finished:
            self._note(f"stopped (limit: {self.sampling.max_new_tokens} tokens)")
        parsed = split(prompt.text, writer.text, mode=self.mode, finished=finished, marks=marks)
        self.history = [*messages, {"role": "assistant", "content": parsed.answer}]

    def _prompt(self, messages: list[dict[str, str]], mode: Mode) -> Prompt:
        try:
            return self.speaker.prompt(messages, mode)
        except Exception as error:  # a template can raise anything
            raise EvaluationError(f"the chat template can't render this: {error}") from error

    def _note(self, text: str) -> None:
        self.console.print(Text(text, style="dim italic"))


class _Writer:
    """Print an answer in pieces, thinking dimmed, without tags, also those split between pieces."""

    def __init__(self, console: Console, marks: TraceMarks, *, thinking: bool) -> None:
        self.console = console
        self.marks = marks
        self.thinking = thinking
        self.text = ""
        self._pending = ""

    def write(self, piece: str) -> None:
        """Print a piece; keep its end back if that may be the start of a tag."""
        self.text += piece
        self._pending += piece
        if len(self._pending) == len(self.text):  # nothing was taken from it yet
            if self.marks.answer_head.startswith(self._pending):
                return
            self._pending = self._pending.removeprefix(self.marks.answer_head)
        while (at := self._pending.find(tag := self._next_tag())) >= 0:
            self._show(self._pending[:at])
            self._pending = self._pending[at + len(tag) :]
            self.thinking = not self.thinking
        safe = len(self._pending) - _overlap(self._pending, tag)
        self._show(self._pending[:safe])
        self._pending = self._pending[safe:]

    def _next_tag(self) -> str:
        return self.marks.closing if self.thinking else self.marks.head

    def end(self) -> None:
        self._show(self._pending)
        self._pending = ""
        self.console.print()

    def _show(self, text: str) -> None:
        if text:
            self.console.print(
                Text(text, style="dim" if self.thinking else ""), end="", soft_wrap=True
            )


def _overlap(text: str, tag: str) -> int:
    """Return the length of the longest end of `text` that begins `tag`: `a</th` -> 4."""
    return next((n for n in range(min(len(tag), len(text)), 0, -1) if text.endswith(tag[:n])), 0)
