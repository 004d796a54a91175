"""Raw rows of a stream -> tokenized rows, as small arrays; rows that can't be used are counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualign.data.config import SourceConfig
from dualign.data.mix.decontamination import TaskIndex
from dualign.data.mix.screening import texts_of
from dualign.data.stream.account import Account
from dualign.data.stream.parts import Part
from dualign.data.stream.reader import Chunk
from dualign.data.tokens.encoding import EncodedRow, Encoder, gc_paused

Tokens = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamRow:
    """A tokenized row. `parts` are the lengths of its documents; `place` names it in messages."""

    source: int
    mode: str
    setting: int
    repairs: str
    supervised: int
    repeats: bool
    place: str
    input_ids: Tokens
    labels: Tokens
    parts: Tokens

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    def state(self) -> dict[str, Any]:
        """Return the row as JSON."""
        arrays = ("input_ids", "labels", "parts")
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {name: values[name].tolist() for name in arrays}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "StreamRow":
        arrays = ("input_ids", "labels", "parts")
        return cls(**state | {name: np.array(state[name], dtype=np.int32) for name in arrays})


@dataclass(kw_only=True)
class ChunkEncoder:
    """Tokenizes the chunks of one source, whose `encoder` it is but for the place of its rows.

    `tasks` are those whose problems no row may hold.
    """

    number: int
    label: str
    parts: Sequence[Part]
    encoder: Encoder
    tasks: TaskIndex | None = None
    _of_part: tuple[Any, Encoder] | None = field(default=None, repr=False)

    def rows(self, chunk: Chunk, account: Account) -> list[StreamRow]:
        """Return the rows that can be used; the others are counted, of a first pass.

        Raises:
            RowError, TemplateError: a row that stops the run by the recipe.
        """
        encoder = self._encoder(chunk)
        with gc_paused():
            encoded = encoder.encode(chunk.raw.columns, chunk.numbers)
        rows = []
        for row in encoded:
            entry = row.entry
            if code := entry["code"] or self._contamination(row):
                if not chunk.repeats:
                    account.drop((entry["mode"], self.label), code)
                continue
            rows.append(self._row(entry, chunk, encoder.source))
        return rows

    def _contamination(self, row: EncodedRow) -> str:
        """Return the code of a row that holds a problem of the evaluation, else ""."""
        if self.tasks is None:
            return ""
        texts = [text for conversation in row.conversations for text in texts_of(conversation)]
        return "contaminated" if self.tasks.find(texts) else ""

    def _row(self, entry: Any, chunk: Chunk, source: SourceConfig) -> StreamRow:
        return StreamRow(
            source=self.number,
            mode=entry["mode"],
            setting=entry["setting"],
            repairs=entry["repairs"],
            supervised=entry["supervised"],
            repeats=chunk.repeats,
            place=f"{source.label}, row {entry['row']}",
            input_ids=np.array(entry["input_ids"], dtype=np.int32),
            labels=np.array(entry["labels"], dtype=np.int32),
            parts=np.array(entry["parts"], dtype=np.int32),
        )

    def _encoder(self, chunk: Chunk) -> Encoder:
        """Return the encoder of a part: its rows are named by their file."""
        key = (chunk.part, chunk.raw.structs)
        if self._of_part is None or self._of_part[0] != key:
            name = self.label
            if len(self.parts) > 1:
                name = f"{name}, {self.parts[chunk.part].name}"
            source = replace(self.encoder.source, label=name)
            encoder = replace(self.encoder, source=source, structs=chunk.raw.structs)
            self._of_part = key, encoder
        return self._of_part[1]
