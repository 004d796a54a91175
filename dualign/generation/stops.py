"""Strings that end an answer. In a trace they mean nothing: there they are only thoughts.

Example, stop `Q:`, prompt ending in `<think>\\n`: `Is Q: next?</think>\\n\\n4\\nQ: 3+3` ends before the
second `Q:`. The white space after a trace is the template's, so a stop of white space is looked for
after it.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from dualign.data.think_tags import CLOSE, OPEN
from dualign.generation.answers import Generation
from dualign.generation.sampling import Sampling
from dualign.generation.thinking import TraceMarks, prompt_opens_block, trace_marks

_SLACK = 8  # tokens at the start of a tail that may decode otherwise than in the whole text


class Stops:
    """The stop strings of an answer, with what is written around a trace."""

    def __init__(self, strings: Sequence[str], marks: TraceMarks) -> None:
        self.strings = tuple(filter(None, strings))
        self.closings = tuple(dict.fromkeys((marks.closing, CLOSE)))
        self._marks = marks
        heads = "|".join(map(re.escape, dict.fromkeys((marks.head, OPEN))))
        closings = "|".join(map(re.escape, self.closings))
        strings = "|".join(map(re.escape, self.strings))
        # The leftmost match wins, so a block is passed over whole, and an open one to its end.
        self._pattern = re.compile(
            rf"(?P<block>(?:{heads}).*?(?:(?:{closings})\s*|(?P<open>\Z)))|(?:{strings})", re.DOTALL
        )

    def cut(self, prompt: str, generated: str) -> int | None:
        """Return where in `generated` the answer's first stop string begins; None without one."""
        return self.scan(prompt, generated)[0]

    def scan(self, prompt: str, generated: str) -> tuple[int | None, bool]:
        """Return `cut`, and whether the text ends inside a trace."""
        if not self.strings:
            return None, False
        head = self._before(prompt)
        for match in self._pattern.finditer(head + generated):
            if match["block"] is None:
                return match.start() - len(head), False
            if match["open"] is not None:
                return None, True
        return None, False

    def apply(self, prompt: str, generation: Generation) -> Generation:
        """Return the generation up to the stop, as one that ended; unchanged without one."""
        cut = self.cut(prompt, generation.text)
        if cut is None:
            return generation
        return replace(generation, text=generation.text[:cut], finished=True)

    def _before(self, prompt: str) -> str:
        """Return what of the prompt decides where the answer begins: an open block, or its end."""
        if prompt_opens_block(prompt, self._marks) or prompt_opens_block(prompt):
            return OPEN
        return OPEN + CLOSE if prompt.endswith(self.closings) else ""


class StopWatch:
    """Whether one row's answer holds a stop string, asked after each of its tokens."""

    def __init__(self, stops: Stops, tokenizer: PreTrainedTokenizerBase, prompt: str) -> None:
        self._stops, self._tokenizer, self._prompt = stops, tokenizer, prompt
        longest = max((len(text.encode()) for text in (*stops.strings, *stops.closings)), default=0)
        self._tail = longest + _SLACK  # a token has a byte or more
        self._expect(in_trace=stops.scan(prompt, "")[1])

    def ended(self, ids: Sequence[int]) -> bool:
        """Return whether the text of the new tokens holds a stop; reads it whole only if its tail may."""
        tail = self._text(ids[-self._tail :])
        if not any(word in tail for word in self._words):
            return False
        cut, in_trace = self._stops.scan(self._prompt, self._text(ids))
        self._expect(in_trace=in_trace)
        return cut is not None

    def apply(self, generation: Generation) -> Generation:
        """Return the generation up to the stop, with the tokens up to the one that completed it."""
        ids = generation.token_ids
        if self._cut(len(ids), ids) is None:
            return generation
        count = bisect_left(range(len(ids)), True, key=lambda n: self._cut(n, ids) is not None)
        text = self._text(ids[:count])
        generation = replace(generation, text=text, token_ids=ids[:count])
        return self._stops.apply(self._prompt, generation)

    def _expect(self, *, in_trace: bool) -> None:
        self.in_trace = in_trace
        # In a trace that holds many stops, only its end is worth a look at the whole text.
        self._words = self._stops.closings if in_trace else self._stops.strings

    def _cut(self, count: int, ids: Sequence[int]) -> int | None:
        return self._stops.cut(self._prompt, self._text(ids[:count]))

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def stop_watches(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], samplings: Sequence[Sampling]
) -> list[StopWatch | None]:
    """Return what looks for each prompt's stop strings; None where it has none."""
    if not any(sampling.stop for sampling in samplings):
        return [None] * len(prompts)
    marks = trace_marks(tokenizer)
    stops = {sampling.stop: Stops(sampling.stop, marks) for sampling in samplings}
    return [
        StopWatch(stops[sampling.stop], tokenizer, prompt) if sampling.stop else None
        for prompt, sampling in zip(prompts, samplings, strict=True)
    ]
