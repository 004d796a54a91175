"""A KV cache whose rows come and go: each row has a slot, and writes at its own length.

Row 0 has 5 tokens, row 1 has 2 (x: written, .: free). In the next step row 0 writes at 5, row 1 at 2:

    slot 0  x x x x x .
    slot 1  x x . . . .

Slots in use are the first ones, so that the model reads a view. Nothing is padded on the left, so
tokens that rows share from their start stand in the same places. Shapes: B slots, H heads, T tokens,
D features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

_GROWTH = 1.25
_LEAST = 64  # tokens by which slots grow


@dataclass(frozen=True, kw_only=True, slots=True)
class _Window:
    """What the next pass of the model reads and writes."""

    slots: slice
    past: int
    """tokens before the first one that is written, in the longest slot"""
    length: int
    """tokens that are read, in the longest slot"""
    places_B: Tensor | None = None
    """where each slot writes its one token; None: all write from `past` on"""


class _Layer(CacheLayerMixin):
    """The slots of one layer."""

    def __init__(self, window: _Window) -> None:
        super().__init__()
        self.window = window
        self.shape = (0, 0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        slots, length = self.shape
        # Zeros: what is masked counts zero times what is there, which must not be NaN.
        self.keys, self.values = (
            states.new_zeros((slots, states.shape[1], length, states.shape[3]))
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def resize(self, slots: int, length: int) -> None:
        """Make room, and keep what is there."""
        old, self.shape = self.shape, (slots, length)
        if not self.is_initialized:
            return
        for name in ("keys", "values"):
            states = getattr(self, name)
            new = states.new_zeros((slots, states.shape[1], length, states.shape[3]))
            kept, tokens = min(old[0], slots), min(old[1], length)
            new[:kept, :, :tokens] = states[:kept, :, :tokens]
            setattr(self, name, new)

    def copy(self, source: int, targets: slice, length: int) -> None:
        """Copy the first tokens of a slot to others."""
        if self.is_initialized:
            for states in (self.keys, self.values):
                states[targets, :, :length] = states[source, :, :length].clone()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write new tokens (B x H x T x D); return all that the window reads."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _write(self, slots: Tensor, states: Tensor) -> Tensor:
        window = self.window
        view = slots[window.slots, :, : window.length]
        if window.places_B is None:
            view[:, :, window.past :] = states
        else:
            places_B = window.places_B.to(slots.device)
            rows_B = torch.arange(len(places_B), device=slots.device)
            view[rows_B, :, places_B] = states[:, :, 0]
        return view

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.window.length, 0

    def get_seq_length(self) -> int:
        return self.window.past

    def get_max_length(self) -> int:
        return -1


class Slots:
    """The slots of all layers."""

    def __init__(self, config: PreTrainedConfig) -> None:
        nothing = _Window(slots=slice(0, 0), past=0, length=0)
        self._layers = [_Layer(nothing) for _ in DynamicCache(config=config).layers]
        self._slots = self._length = 0
        self.cache = Cache(layers=self._layers)

    def reserve(self, slots: int, length: int, *, at_most: int) -> None:
        """Make room for so many slots of so many tokens; more is taken at once, to `at_most` tokens."""
        if slots <= self._slots and length <= self._length:
            return
        if length > self._length:
            length = min(max(length, int(self._length * _GROWTH), self._length + _LEAST), at_most)
        self._slots, self._length = slots, max(length, min(self._length, at_most))
        for layer in self._layers:
            layer.resize(self._slots, self._length)

    def copy(self, source: int, targets: slice, length: int) -> None:
        """Copy the first tokens of a slot to others."""
        for layer in self._layers:
            layer.copy(source, targets, length)

    def fill(self, slots: slice, past: int, count: int) -> None:
        """Let the next pass write `count` tokens of these slots, after `past` tokens that are there."""
        self._set(_Window(slots=slots, past=past, length=past + count))

    def step(self, places_B: Tensor, longest: int) -> None:
        """Let the next pass write a token of each slot in use, at its place; `longest` is the largest."""
        slots = slice(0, len(places_B))
        self._set(_Window(slots=slots, past=longest, length=longest + 1, places_B=places_B))

    def _set(self, window: _Window) -> None:
        for layer in self._layers:
            layer.window = window
