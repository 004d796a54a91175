"""One answer while it is generated, whatever it is batched with."""

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from dualign.generation.answers import Generation
from dualign.generation.sampling import Sampling, uniforms
from dualign.generation.stops import StopWatch

MAX_ROWS = 256  # of a batch


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
        self._ends, self._watch = ends, watch
        self._seed = seed
        self._draws: list[float] = []

    @property
    def longest(self) -> int:
        """The tokens that it can have in the end."""
        return len(self.prompt_ids) + self.sampling.max_new_tokens

    @property
    def ids(self) -> list[int]:
        """The tokens that it has."""
        return [*self.prompt_ids, *self.new]

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return len(self.prompt_ids) + len(self.new)

    @property
    def last(self) -> int:
        """The token that the next one follows."""
        return self.new[-1] if self.new else self.prompt_ids[-1]

    def draw(self) -> float:
        """Return the number in [0, 1) of the next token; 0 where none is drawn."""
        if self.ended or not self.sampling.temperature:
            return 0.0
        self._draws = self._draws or uniforms(self._seed, self.sampling.max_new_tokens)
        return self._draws[len(self.new)]

    def take(self, token: int) -> None:
        """Add a token, and end if it is the last."""
        self.new.append(token)
        self.ended = (
            token in self._ends
            or len(self.new) >= self.sampling.max_new_tokens
            or (self._watch is not None and self._watch.ended(self.new))
        )
        if self.ended:
            self._draws = []

    def generation(self, tokenizer: PreTrainedTokenizerBase) -> Generation:
        """Return what was generated, without the token that ended the turn, and up to a stop."""
        finished = self.new[-1] in self._ends
        ids = tuple(self.new[:-1] if finished else self.new)
        # Special tokens stay in the text: in some vocabularies the think tags are special.
        text = str(tokenizer.decode(ids, skip_special_tokens=False))
        generation = Generation(text=text, token_ids=ids, finished=finished)
        return generation if self._watch is None else self._watch.apply(generation)
