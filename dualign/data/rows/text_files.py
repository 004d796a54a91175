"""Documents as rows: each cut into as many as its tokens need, or whole."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from dualign.data.faults import RowFault
from dualign.data.rows.cutting import Cutter
from dualign.data.rows.documents import document_text, has_headings
from dualign.data.rows.shapes import ENDS, FAULT, PLACE
from dualign.errors import DataError

_TEXT = {"text": datasets.Value("string")}
_ROW = datasets.Features(
    _TEXT
    | {
        PLACE: datasets.Value("string"),
        ENDS: datasets.Value("bool"),
        FAULT: datasets.Value("string"),
    }
)


def text_stream(files: Sequence[Path], cutter: Cutter | None) -> datasets.IterableDataset:
    """Return a row for each piece that `cutter` makes of a document; without one, for each document,
    and then a document that can't be read is an error.
    """
    stream = datasets.IterableDataset.from_generator(
        _texts if cutter is None else _rows,
        features=datasets.Features(_TEXT) if cutter is None else _ROW,
        gen_kwargs={"files": list(files)} | ({} if cutter is None else {"cutters": (cutter,)}),
    )
    assert isinstance(stream, datasets.IterableDataset), "without splits"
    return stream


def _texts(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        try:
            parts, fault = document_text(file)
            if fault is not None:
                raise fault
        except RowFault as error:
            raise DataError(str(error)) from error
        yield {"text": "".join(parts)}


def _rows(files: Sequence[Path], cutters: tuple[Cutter]) -> Iterator[dict[str, Any]]:
    for file in files:
        try:
            parts, fault = document_text(file)
        except RowFault as error:
            yield _faulty(file, error)
            continue
        pending: dict[str, Any] | None = None
        pieces = cutters[0].pieces(parts, headings=has_headings(file))
        for number, piece in enumerate(pieces, 1):
            if pending is not None:
                yield pending
            pending = {"text": piece, PLACE: f"{file}, part {number}", ENDS: False, FAULT: None}
        if pending is not None:
            yield pending | {ENDS: True}
        if fault is not None:
            yield _faulty(file, fault)


def _faulty(file: Path, fault: RowFault) -> dict[str, Any]:
    return {"text": "", PLACE: str(file), ENDS: True, FAULT: f"{fault.code} {fault}"}
