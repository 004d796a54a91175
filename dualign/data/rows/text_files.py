"""Plain text files: one document each, for `supervise: all`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import fsspec

from dualign.data.rows.file_signs import encoding, packing
from dualign.errors import DataError

_FEATURES = datasets.Features({"text": datasets.Value("string")})


def text_stream(files: Sequence[Path]) -> datasets.IterableDataset:
    """Return a row with `text` for each file."""
    stream = datasets.IterableDataset.from_generator(
        _texts, features=_FEATURES, gen_kwargs={"files": list(files)}
    )
    assert isinstance(stream, datasets.IterableDataset), "without splits"
    return stream


def _texts(files: Sequence[Path]) -> Iterator[dict[str, str]]:
    for file in files:
        text = fsspec.open(
            str(file), "rt", compression=packing(file), encoding=encoding(file), newline=None
        )
        try:
            with text as lines:
                yield {"text": lines.read()}
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: isn't UTF-8 or UTF-16 text ({error}). Convert it.") from error
