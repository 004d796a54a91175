"""Continuous batching: a row joins as soon as another leaves, so none waits for the longest.

transformers' own (`generate_batch`) draws all rows from one generator, so that a row's text depends
on its neighbors, and sizes its memory by what the device has left. Here a row's draws are its own and
batch_tokens bounds the memory; its forward passes are the model's own, on a cache of slots.
Shapes: B rows, T tokens, V vocabulary.

A row holds the keys of all its tokens but the last, and a step reads that one. So a prompt is filled
in without a token being chosen, and one whose tokens stand in another row already isn't computed.

Rows get room for twice the new tokens that rows have had until then, not for their limits. Where the
room ends, the shortest rows leave, and join again with their tokens later.
"""

import inspect
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from dualign.generation.families import WORTH, Families, runs
from dualign.generation.row import MAX_ROWS, Row
from dualign.generation.sampling import choose
from dualign.generation.slots import Slots

_JOINING = 8  # rows join once a row for each so many others can
_AHEAD = 64  # tokens for which a row gets room at least
_ATTENTION = frozenset({"eager", "sdpa"})


def serves(model: PreTrainedModel) -> bool:
    """Return whether a model's rows can be of different lengths at a time.

    They can where each layer keeps all keys, and tokens stand where position_ids say.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config(decoder=True)
    arguments = inspect.signature(base.forward).parameters
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config is base.config
        and not config.is_encoder_decoder
        and {"position_ids", "logits_to_keep"} <= arguments.keys()
        and config._attn_implementation in _ATTENTION
        and not getattr(config, "alibi", False)
        and rope.get("rope_type", "default") not in ("dynamic", "longrope")  # of the longest row
        and all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
    )


def continuously(
    model: PreTrainedModel, rows: Sequence[Row], *, batch_tokens: int
) -> Iterator[list[Row]]:
    """Generate rows; yield those that ended, as they end."""
    batch = _Batch(model, Families([row.prompt_ids for row in rows]), batch_tokens)
    waiting = deque(batch.families.order(rows))
    while waiting or batch.rows:
        batch.join([waiting.popleft() for _ in range(batch.room(waiting))])
        waiting.extendleft(batch.give_way())
        batch.step()
        if ended := batch.leave():
            yield ended


def _length(row: Row) -> int:
    return row.length


class _Batch:
    """The rows that are generated at a time; the i-th has the i-th slot."""

    def __init__(self, model: PreTrainedModel, families: Families, batch_tokens: int) -> None:
        self.model, self.families, self.batch_tokens = model, families, batch_tokens
        self.rows: list[Row] = []
        self._ended = self._new = 0  # rows that ended, and their new tokens
        self.slots = Slots(model.config.get_text_config(decoder=True))

    def room(self, waiting: Sequence[Row]) -> int:
        """Return how many of those waiting are to join now: none while few could."""
        longest = max(map(self._expected, self.rows), default=0)
        count = 0
        for row in waiting:
            longest = max(longest, self._expected(row))
            total = len(self.rows) + count + 1
            if total > 1 and (total > MAX_ROWS or total * longest > self.batch_tokens):
                break
            count += 1
        return count if count * _JOINING >= len(self.rows) or count == len(waiting) else 0

    def _expected(self, row: Row) -> int:
        """Return the length for which a row gets room: its limit, until rows that ended tell more."""
        ahead = max(_AHEAD, 2 * self._new // self._ended) if self._ended else row.longest
        return min(row.longest, row.length + ahead)

    def give_way(self) -> list[Row]:
        """Return rows that have no room for their next token, the shortest; they join again later."""
        out = []
        while len(self.rows) > 1:
            if len(self.rows) * max(row.length for row in self.rows) <= self.batch_tokens:
                break
            out.append(min(self.rows, key=lambda row: row.length))
            self._remove(self.rows.index(out[-1]))
        return out

    def join(self, rows: Sequence[Row]) -> None:
        """Add rows, and fill in their prompts; what they share with another row is copied."""
        common = self.families.common
        first, later = self._sources(rows)
        for run in runs(first, _length, lambda most: most // 2):
            self._fill(run, 0, None)
        for source, members in later:
            for near in runs(members, lambda row: common[row.index], lambda most: most - WORTH):
                past = min(common[row.index] for row in [source, *near])
                past = min(past, source.length - 1, *(row.length - 1 for row in near))
                for run in runs(near, _length, lambda most: most // 2):
                    self._fill(run, past, self.rows.index(source))

    def _sources(self, rows: Sequence[Row]) -> tuple[list[Row], list[tuple[Row, list[Row]]]]:
        """Return the rows to fill in first, and others with the row that each list copies from."""
        first: list[Row] = []
        later: list[tuple[Row, list[Row]]] = []
        common = self.families.common
        for members in self.families.split(rows):
            resident = self.families.split([*members, *self.rows])[0][len(members) :]
            source = max(resident or members, key=lambda row: common[row.index])
            others = [row for row in members if row is not source]
            if sum(min(common[row.index], common[source.index]) for row in others) < WORTH:
                first += members
                continue
            if not resident:
                first.append(source)
            later.append((source, others))
        return first, later

    def _fill(self, rows: Sequence[Row], past: int, source: int | None) -> None:
        """Add rows with their prompts, of which `past` tokens stand in the source's slot, too."""
        start = len(self.rows)
        self.rows += rows
        tokens = [row.ids[past:-1] for row in rows]
        count = max(map(len, tokens))
        self._reserve(past + count)
        slots = slice(start, len(self.rows))
        if source is not None:
            self.slots.copy(source, slots, past)
        if not count:
            return
        # Padding on the right: no token sees it, and the row's own tokens are written over it.
        padded = [[*ids, *[0] * (count - len(ids))] for ids in tokens]
        ids_BT = torch.tensor(padded, device=self.model.device)
        self.slots.fill(slots, past, count)
        self.model(
            ids_BT,
            attention_mask=ids_BT.new_ones(len(rows), past + count),
            position_ids=torch.arange(past, past + count, device=ids_BT.device).expand_as(ids_BT),
            past_key_values=self.slots.cache,
            use_cache=True,
            logits_to_keep=1,
        )

    def step(self) -> None:
        """Give each row a token."""
        places = [row.length - 1 for row in self.rows]
        longest = max(places)
        self._reserve(longest + 1)
        places_B = torch.tensor(places, device=self.model.device)
        self.slots.step(places_B, longest)
        logits_BV = self.model(
            torch.tensor([[row.last] for row in self.rows], device=self.model.device),
            attention_mask=torch.arange(longest + 1, device=self.model.device) <= places_B[:, None],
            position_ids=places_B[:, None],
            past_key_values=self.slots.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        samplings = [row.sampling for row in self.rows]
        tokens_B = choose(logits_BV.float(), samplings, [row.draw() for row in self.rows])
        for row, token in zip(self.rows, tokens_B.tolist(), strict=True):
            row.take(token)

    def leave(self) -> list[Row]:
        """Return the rows that ended; the last rows take their slots."""
        ended = [row for row in self.rows if row.ended]
        for slot in reversed([i for i, row in enumerate(self.rows) if row.ended]):
            self._remove(slot)
        self._ended += len(ended)
        self._new += sum(len(row.new) for row in ended)
        return ended

    def _remove(self, slot: int) -> None:
        last = self.rows.pop()
        if slot < len(self.rows):
            self.rows[slot] = last
            self.slots.copy(len(self.rows), slice(slot, slot + 1), last.length - 1)

    def _reserve(self, length: int) -> None:
        longest = max(row.longest for row in self.rows)
        room = max(length, self.batch_tokens // len(self.rows))
        self.slots.reserve(len(self.rows), length, at_most=min(longest, room))
