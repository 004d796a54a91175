"""One answer while it is generated, whatever it is batched with."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dualign.generation.answers import Generation
from dualign.generation.sampling import Sampling, uniforms
from dualign.generation.stops import StopWatch


class Row:
    """A prompt and its new tokens; its settings, draws and end are its own."""

    def __init__(
        self,
        index: int,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        seed: int,
        ends: Collection[int],
        watch: StopWatch | None,
    ) -> None:
        """Make a row.

        Args:
            index: its place among the prompts.
            ends: tokens that end a turn.
            watch: looks for its stop strings, if it has any.
        """
        self.index, self.prompt_ids, self.sampling = index, prompt_ids, sampling
        self.new: list[int] = []
        self.ended = False
        self._seed, self._ends, self._watch = seed, ends, watch

    @property
    def longest(self) -> int:
        """The tokens that it can have in the end."""
        return len(self.prompt_ids) + self.sampling.max_new_tokens

    def draws(self) -> Tensor:
        """Return a number in [0, 1) for each new token; of a greedy row they mean nothing."""
        steps = self.sampling.max_new_tokens
        return uniforms([self._seed], steps)[0] if self.sampling.temperature else torch.zeros(steps)

    def take(self, token: int) -> None:
        """Add a token, and end if it is the last."""
        self.new.append(token)
        self.ended = (
            token in self._ends
            or len(self.new) >= self.sampling.max_new_tokens
            or (self._watch is not None and self._watch.ended(self.new))
        )

    def generation(self, tokenizer: PreTrainedTokenizerBase) -> Generation:
        """Return what was generated, without the token that ended the turn, and up to a stop."""
        finished = self.new[-1] in self._ends
        ids = tuple(self.new[:-1] if finished else self.new)
        # Special tokens stay in the text: in some vocabularies the think tags are special.
        text = str(tokenizer.decode(ids, skip_special_tokens=False))
        generation = Generation(text=text, token_ids=ids, finished=finished)
        return generation if self._watch is None else self._watch.apply(generation)
