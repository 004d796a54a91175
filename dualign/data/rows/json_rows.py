"""JSON files -> a table, with every value as it is written.

`datasets` infers columns from the first ten megabytes (a key that comes up later stops it), cuts
numbers to ten digits and drops half characters. So the columns are inferred here from all rows, and
lists and objects are stored as the text that `json` writes.

A lone surrogate, half of a character, has no place in UTF-8. It is stored as the noncharacter
LONE_SURROGATE, and the row is refused by that.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter

from dualign.data.rows.json_forms import rows_of_file
from dualign.errors import DataError

LONE_SURROGATE = "\ufdd0"
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONG_NUMBER = re.compile(r"\d{19}")
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_VERSION = "2"
_BATCH_ROWS = 1_000
_LARGEST = 2**63
_BY_KIND = {
    frozenset({str}): "string",
    frozenset({bool}): "bool",
    frozenset({int}): "int64",
    frozenset({float}): "float64",
    frozenset({int, float}): "float64",
}


class _BigInt:
    """The kind of integers that Arrow has no type for."""


@dataclass(frozen=True)
class JsonRows:
    """The rows of JSON files; `split` is where they are in a file that holds several."""

    files: tuple[Path, ...]
    split: str

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for file in self.files:
            yield from rows_of_file(file, self.split)

    @cached_property
    def features(self) -> datasets.Features:
        """A column for each key that any row has. Lists, objects and values of several kinds are
        kept as JSON.

        Raises:
            DataError: there is none.
        """
        kinds: dict[str, set[type]] = {}
        for row in self:
            for key, value in row.items():
                kinds.setdefault(key, set()).add(_kind(value))
        if not kinds:
            raise DataError(f"{self.files[0]}: holds no rows")
        return datasets.Features({key: _feature(of_key) for key, of_key in kinds.items()})

    def table(self) -> datasets.Dataset:
        """Return the rows as a table on disk, which stays while the files stay as they are."""
        folder = Path(datasets.config.HF_DATASETS_CACHE) / "json" / self._key()
        if not folder.is_dir():
            features = self.features
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=folder.parent))
            try:
                write_rows(self, features, partial / "rows.arrow")
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return datasets.Dataset.from_file(str(folder / "rows.arrow"))

    def _key(self) -> str:
        states = [(str(file.resolve()), file.stat()) for file in self.files]
        state = [(path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in states]
        return sha256(json.dumps([_VERSION, self.split, state]).encode()).hexdigest()


def write_rows(rows: Iterable[Mapping[str, Any]], features: datasets.Features, path: Path) -> None:
    """Write rows of JSON to an Arrow file."""
    iterator = iter(rows)
    with ArrowWriter(path=str(path), features=features) as writer:
        while batch := list(islice(iterator, _BATCH_ROWS)):
            columns = [
                _array([row.get(name) for row in batch], kind, name)
                for name, kind in features.items()
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=features.arrow_schema))
        writer.finalize()


def _array(values: Sequence[Any], kind: Any, name: str) -> pa.Array:
    if isinstance(kind, datasets.Json):
        texts = [None if value is None else _text(value, name) for value in values]
        return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))
    if kind.dtype == "string":
        values = [None if value is None else _storable(value) for value in values]
    return pa.array(values, kind.pa_type)


def _text(value: Any, name: str) -> str:
    try:
        text = _storable(_ENCODER.encode(value))
        if _LONG_NUMBER.search(text):
            datasets.Json().decode_example(text)  # which knows integers of 64 bits alone
        return text
    except ValueError as error:
        raise DataError(
            f"column {name!r}: a number out of range ({error}). Write it as text."
        ) from error


def _storable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub(LONE_SURROGATE, text)
    return text


def _kind(value: Any) -> type:
    if type(value) is int and not -_LARGEST <= value < _LARGEST:
        return _BigInt
    return type(value)


def _feature(kinds: set[type]) -> Any:
    kind = _BY_KIND.get(frozenset(kinds - {type(None)} or {str}))
    return datasets.Value(kind) if kind else datasets.Json()
