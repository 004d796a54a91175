"""A conversation in the terminal: `dualign chat MODEL`.

Answers stream, thinking is dimmed, and /think and /no_think switch the mode for the turns to come.
The history keeps what was said, not what was thought: a thinking trace is of no use to later turns
and would fill the context.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from dualign.data.conversation import Mode
from dualign.errors import EvaluationError
from dualign.generation.generate import end_ids, generation_settings, tokenized
from dualign.generation.sampling import sampler, uniforms
from dualign.generation.thinking import CLOSE, OPEN, prompt_opens_block, split
from dualign.models.inference import load_chat_tokenizer, load_model

HELP = (
    "/think and /no_think switch the mode (a question may follow), /reset forgets the conversation, /quit ends it. "
    "Ctrl-C stops an answer."
)


def chat(
    model: str,
    *,
    mode: Mode = "think",
    max_new_tokens: int = 512,
    temperature: float = 0.6,
    top_p: float = 0.95,
    seed: int = 0,
    dtype: str = "auto",
    console: Console | None = None,
) -> None:
    """Talk to a model until /quit or the end of the input, which may be a pipe."""
    console = console or Console(highlight=False)
    with suppress(ImportError):  # line editing and history, where Python has them
        import readline  # noqa: F401
    talk = Talk(
        model=load_model(model, dtype=dtype),
        tokenizer=load_chat_tokenizer(model),
        console=console,
        mode=mode,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    console.print(Text(f"{model}\n{HELP}", style="dim"))
    for line in _lines(talk):
        if not talk.hear(line):
            return


def _lines(talk: "Talk") -> Iterator[str]:
    while True:
        try:
            yield talk.console.input(Text(f"\n[{talk.mode}] > ", style="bold"), markup=False)
        except (EOFError, KeyboardInterrupt):
            talk.console.print()
            return


@dataclass(kw_only=True, slots=True)
class Talk:
    """The state of a conversation."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    console: Console
    mode: Mode
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    history: list[dict[str, str]] = field(default_factory=list)
    turns: int = 0

    def hear(self, line: str) -> bool:
        """Obey a command or answer a question; False ends the conversation."""
        command, _, rest = line.strip().partition(" ")
        match command:
            case "/quit" | "/exit":
                return False
            case "/reset":
                self.history.clear()
                self._note("forgotten")
            case "/help":
                self._note(HELP)
            case "/think" | "/no_think":
                self._switch("think" if command == "/think" else "no_think")
                if rest.strip():
                    self._answer(rest.strip())
            case _ if command.startswith("/"):
                self._note(f"{command}: no such command. {HELP}")
            case "":
                pass
            case _:
                self._answer(line.strip())
        return True

    def _switch(self, mode: Mode) -> None:
        self.mode = mode
        probe = [{"role": "user", "content": "?"}]
        if self._prompt(probe, "think") == self._prompt(probe, "no_think"):
            self._note(f"mode: {mode}, but this model's chat template knows no modes")
        else:
            self._note(f"mode: {mode}")

    def _answer(self, question: str) -> None:
        messages = [*self.history, {"role": "user", "content": question}]
        prompt = self._prompt(messages, self.mode)
        ids = tokenized(self.tokenizer, [prompt])[0]
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room is not None and len(ids) + self.max_new_tokens > room:
            self._note(
                f"the conversation has {len(ids)} tokens, the model reads {room}: /reset first"
            )
            return
        writer = _Writer(self.console, thinking=prompt_opens_block(prompt))
        streamer = _Streamer(self.tokenizer, writer, end_ids(self.model, self.tokenizer))
        finished = self._generate(ids, streamer)
        writer.end()
        if not finished:
            self._note(f"stopped (limit: {self.max_new_tokens} tokens)")
        parsed = split(prompt, writer.text, mode=self.mode, finished=finished)
        self.history = [*messages, {"role": "assistant", "content": parsed.answer}]

    @torch.inference_mode()
    def _generate(self, ids: list[int], streamer: "_Streamer") -> bool:
        """Stream an answer; True if the model ended it, False if the limit or Ctrl-C did."""
        self.turns += 1
        settings = generation_settings(
            self.model, self.tokenizer, max_new_tokens=self.max_new_tokens
        )
        ids_BT = torch.tensor([ids], device=self.model.device)
        draws_BT = uniforms([self.seed + self.turns], self.max_new_tokens).to(self.model.device)
        try:
            self.model.generate(
                ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                generation_config=settings,
                logits_processor=sampler(self.temperature, self.top_p, draws_BT, len(ids)),
                streamer=streamer,
            )
        except KeyboardInterrupt:
            streamer.end()
        return streamer.ended

    def _prompt(self, messages: list[dict[str, str]], mode: Mode) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=False,
                enable_thinking=mode == "think",
            )
        except Exception as error:  # jinja2 raises what the template makes it raise
            raise EvaluationError(f"the chat template can't render this: {error}") from error
        return str(text)

    def _note(self, text: str) -> None:
        self.console.print(Text(text, style="dim italic"))


class _Streamer(TextStreamer):
    """Hands the text to a writer as it comes, without the token that ends the turn."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, writer: "_Writer", ends: list[int]
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=False)
        self.writer = writer
        self.ends = frozenset(ends)
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        if not self.next_tokens_are_prompt and value.flatten()[-1].item() in self.ends:
            self.ended = True
            return
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.writer.write(text)


class _Writer:
    """Prints an answer in pieces: thinking dimmed, tags left out, also one that comes in two."""

    def __init__(self, console: Console, *, thinking: bool) -> None:
        self.console = console
        self.thinking = thinking
        self.text = ""
        self._held = ""

    def write(self, piece: str) -> None:
        """Print a piece, but hold back its end where that may be the start of a tag."""
        self.text += piece
        self._held += piece
        while (place := self._held.find(tag := CLOSE if self.thinking else OPEN)) >= 0:
            self._show(self._held[:place])
            self._held = self._held[place + len(tag) :]
            self.thinking = not self.thinking
        safe = len(self._held) - _overlap(self._held, tag)
        self._show(self._held[:safe])
        self._held = self._held[safe:]

    def end(self) -> None:
        self._show(self._held)
        self._held = ""
        self.console.print()

    def _show(self, text: str) -> None:
        if text:
            self.console.print(
                Text(text, style="dim" if self.thinking else ""), end="", soft_wrap=True
            )


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` begin `tag`."""
    return next((n for n in range(min(len(tag), len(text)), 0, -1) if text.endswith(tag[:n])), 0)
