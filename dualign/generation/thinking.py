"""Split a generation into thinking and answer, and check its form.

A think prompt may end in an open block (the tag is prefilled), or leave it to the model to open
one. Both are handled. Example, prompt ending in `<think>\\n`: `2+2=4\\n</think>\\n\\nFour` ->
thinking `2+2=4`, answer `Four`, closed. What a family writes around a trace instead of think tags
is found by rendering its template, and read as these.
"""

import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dualign.data.conversation import Conversation, Mode
from dualign.data.text.template import ChatTemplate, load_template
from dualign.data.text.turn_shapes import trials
from dualign.data.think_tags import CLOSE, EMPTY_BLOCK, LEAKED_TAG, OPEN
from dualign.errors import TemplateError

_PLAIN_TEXTS = (f"{OPEN}\n", f"\n{CLOSE}\n\n")
_BLOCK = re.compile(rf"{re.escape(OPEN)}(.*?)(?:{re.escape(CLOSE)}|\Z)", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceMarks:
    """What a model writes around a trace. gpt-oss: `<|channel|>analysis<|message|>`, then
    `<|end|><|start|>assistant<|channel|>final<|message|>`; an answer without a trace has
    `<|channel|>final<|message|>` before it.
    """

    head: str = OPEN
    closing: str = CLOSE
    answer_head: str = ""

    def tagged(self, text: str) -> str:
        """Return the text with think tags in place of these marks."""
        text = text.replace(self.closing, CLOSE).replace(self.head, OPEN)
        start = text.lstrip()
        is_headed = self.answer_head and start.startswith(self.answer_head)
        return start[len(self.answer_head) :] if is_headed else text


TAGS = TraceMarks()


def trace_marks(tokenizer: PreTrainedTokenizerBase) -> TraceMarks:
    """Return what a model writes around a trace by its template; think tags where it can't be told."""
    try:
        template = load_template("tokenizer", tokenizer=tokenizer)
    except TemplateError:
        return TAGS
    plain, thinking = (
        [trial for trial in trials() if trial.mode == mode and not trial.messages[-1].tool_calls]
        for mode in ("no_think", "think")
    )
    head, closing = next(filter(all, (_marks(template, trial) for trial in thinking)), ("", ""))
    if not head or OPEN in head or CLOSE in closing:
        return TAGS
    headers = (_produced(template, trial).partition(trial.messages[-1].content) for trial in plain)
    header = next((before.strip() for before, answer, _ in headers if answer), "")
    return TraceMarks(head=head, closing=closing, answer_head=header)


def trace_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return what a template writes before a trace and between it and its answer, with white space;
    think tags on lines of their own where it can't be told. A block that the prompt opens has
    nothing before its trace.
    """
    try:
        template = load_template("tokenizer", tokenizer=tokenizer)
    except TemplateError:
        return _PLAIN_TEXTS
    thinking = (t for t in trials() if t.mode == "think" and not t.messages[-1].tool_calls)
    texts = (_around(template, trial) for trial in thinking)
    return next((pair for pair in texts if pair[1].strip()), _PLAIN_TEXTS)


def _marks(template: ChatTemplate, trial: Conversation) -> tuple[str, str]:
    """Return what marks the start and the end of the trace of a turn; "" where it isn't there."""
    head, closing = _around(template, trial)
    # A block that the prompt opens has its tag there.
    return (head.strip() or template.tags[0], closing.strip()) if closing else ("", "")


def _around(template: ChatTemplate, trial: Conversation) -> tuple[str, str]:
    """Return what stands before and after the trace of a turn; "" where it isn't there."""
    produced = _produced(template, trial)
    answer = trial.messages[-1]
    head, trace, rest = produced.partition(answer.thinking or "")
    closing, content, _ = rest.partition(answer.content)
    return (head, closing) if trace and content else ("", "")


def _produced(template: ChatTemplate, trial: Conversation) -> str:
    """Return what follows the generation prompt in a trial's last turn; "" if nothing does."""
    which, text_of = len(trial.messages) - 1, template.texts(trial)
    try:
        prompt, text = text_of(which, True), text_of(which + 1, False)
    except TemplateError:
        return ""
    return text[len(prompt) :] if text.startswith(prompt) else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """Parts and form of a generation.

    closed, empty and cut_in_think are about think mode; they are False in no_think.
    closed: the output starts with the think block (or continues a prefilled one), and the block
    ends.
    empty: no block, or a block of white space.
    cut_in_think: the token limit was reached inside the block.
    leaked: a think tag is out of place. In no_think mode that is any tag, except for one empty
    block at the head of an answer whose prompt has no block (some families mark "not thinking"
    like this). In think mode it is any tag outside the block at the head. Reasoning without tags
    can't be told from an answer and isn't counted; it shows in the answer's length.
    """

    thinking: str | None
    """text of the think blocks, trimmed; None if there is no block"""
    answer: str
    """text for the user, trimmed; empty if a think block never ended"""
    closed: bool
    leaked: bool
    empty: bool
    cut_in_think: bool
    untrimmed: str = ""
    """the answer with the white space around it; after a trace, without that before it"""

    def fault(self, mode: Mode, *, finished: bool) -> str:
        """Return why this is no whole answer in a mode, in a word that can be counted; "" if it is one."""
        if mode == "think" and (word := self._trace_fault()):
            return word
        if not finished:
            return "answer_cut"
        if self.leaked or not self.answer or (mode == "no_think" and self.thinking is not None):
            return "malformed"
        return ""

    def _trace_fault(self) -> str:
        if self.cut_in_think:
            return "trace_cut"
        if self.empty:
            return "empty_trace" if self.closed else "no_trace"
        return "" if self.closed else "malformed"


def prompt_opens_block(prompt: str, marks: TraceMarks = TAGS) -> bool:
    """Return whether the prompt ends inside a think block, so that thinking starts at once."""
    return prompt.rstrip().endswith(marks.head)


def ends_in_trace(prompt: str, generated: str, marks: TraceMarks = TAGS) -> bool:
    """Return whether a text stops inside a think block, in whatever mode and place that began."""
    prompt, generated = marks.tagged(prompt), marks.tagged(generated)
    opened, closed = generated.rfind(OPEN), generated.rfind(CLOSE)
    return prompt_opens_block(prompt) if opened == closed else opened > closed


def _prompt_has_block(prompt: str) -> bool:
    """Return whether the prompt ends with a closed think block, as no_think prompts do."""
    return prompt.rstrip().endswith(CLOSE)


def split(
    prompt: str, generated: str, *, mode: Mode, finished: bool, marks: TraceMarks = TAGS
) -> Reply:
    """Split `generated`, the continuation of `prompt`.

    Args:
        prompt: the text after which the model answered.
        generated: what it wrote.
        mode: the mode in which it was asked.
        finished: the model ended its turn; False when the token limit cut it.
        marks: what its template writes around a trace.
    """
    prompt, generated = marks.tagged(prompt), marks.tagged(generated)
    if mode == "no_think":
        return _split_no_think(prompt, generated)
    text = generated.lstrip()
    opened = prompt_opens_block(prompt)
    leaked = False
    if text.startswith(OPEN):
        # After a prefilled tag this is a second one.
        leaked, opened, text = opened, True, text[len(OPEN) :]
    if not opened:
        return _without_block(text)
    thinking, close, rest = text.partition(CLOSE)
    leaked = (
        leaked or LEAKED_TAG.search(thinking) is not None or LEAKED_TAG.search(rest) is not None
    )
    thinking = LEAKED_TAG.sub("", thinking).strip()
    return Reply(
        thinking=thinking,
        answer=_visible(rest),
        untrimmed=_untagged(rest).lstrip(),
        closed=bool(close),
        leaked=leaked,
        empty=not thinking,
        cut_in_think=not close and not finished,
    )


def _without_block(text: str) -> Reply:
    """Parse think-mode output that doesn't start with a block; a later block is a leak."""
    before, close, after = text.partition(CLOSE)
    stray = bool(close) and OPEN not in before  # the end of a block that was never opened
    thinking = before.strip() if stray else _in_blocks(text)
    return Reply(
        thinking=thinking,
        answer=_visible(after if stray else text),
        untrimmed=_untagged(after if stray else text).lstrip(),
        closed=False,
        leaked=LEAKED_TAG.search(text) is not None,
        empty=not thinking,
        cut_in_think=False,
    )


def _split_no_think(prompt: str, generated: str) -> Reply:
    text = generated if _prompt_has_block(prompt) else EMPTY_BLOCK.sub("", generated, count=1)
    before, close, after = text.partition(CLOSE)
    stray = bool(close) and OPEN not in before
    return Reply(
        thinking=before.strip() if stray else _in_blocks(text),
        answer=_visible(after if stray else text),
        untrimmed=_untagged(after if stray else text),
        closed=False,
        leaked=LEAKED_TAG.search(text) is not None,
        empty=False,
        cut_in_think=False,
    )


def _in_blocks(text: str) -> str | None:
    blocks = [block.strip() for block in _BLOCK.findall(text)]
    return "\n\n".join(blocks) if blocks else None


def closed_trace(prompt: str, generated: str, marks: TraceMarks, closing: str) -> str:
    """Return a prompt with the trace that a model wrote, closed: the text that an answer follows.

    Without a trace it is the prompt alone.

    Args:
        closing: what its template writes between a trace and its answer, with white space.
    """
    trace, mark, rest = generated.partition(marks.closing)
    if not (prompt_opens_block(prompt, marks) or trace.lstrip().startswith(marks.head)):
        return prompt
    if not mark:
        return f"{prompt}{trace.rstrip()}{closing}"
    space = rest[: len(rest) - len(rest.lstrip())]
    return f"{prompt}{trace}{mark}{space or closing.rpartition(marks.closing)[2]}"


def _visible(text: str) -> str:
    return _untagged(text).strip()


def _untagged(text: str) -> str:
    """Remove think blocks, closed or not, and stray tags."""
    return LEAKED_TAG.sub("", _BLOCK.sub("", text))
