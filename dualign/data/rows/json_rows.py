"""JSON files -> a table, or a stream of rows."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from filelock import FileLock

from dualign.data.rows.json_columns import batches_of, features_of, joined_kinds, kinds_of
from dualign.data.rows.json_forms import rows_of_file
from dualign.data.rows.json_parts import write_parts
from dualign.data.shards import joined
from dualign.errors import DataError

_VERSION = "3"


@dataclass(frozen=True)
class JsonRows:
    """The rows of JSON files; `split` is where they are in a file that holds several. `most`: no
    more than the first so many.
    """

    files: tuple[Path, ...]
    split: str
    most: int | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows = (row for file in self.files for row in rows_of_file(file, self.split))
        yield from islice(rows, self.most)

    @cached_property
    def features(self) -> datasets.Features:
        """A column for each key that any row has. Lists, objects and values of several kinds are
        kept as JSON.

        Raises:
            DataError: there is none.
        """
        kinds = joined_kinds(kinds_of(batch) for batch in batches_of(self))
        if not kinds:
            raise DataError(f"{self.files[0]}: holds no rows")
        return features_of(kinds)

    def table(self, processes: int = 1) -> datasets.Dataset:
        """Return the rows as a table on disk, which stays while the files stay as they are.

        Processes that want it at once take turns: the first writes it.
        """
        folder = Path(datasets.config.HF_DATASETS_CACHE) / "json" / self._key()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                partial = Path(tempfile.mkdtemp(dir=folder.parent))
                try:
                    write_parts(self.files, self.split, partial, processes=processes)
                    partial.rename(folder)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
        return joined(sorted(folder.glob("*.arrow")))

    def _key(self) -> str:
        states = [(str(file.resolve()), file.stat()) for file in self.files]
        state = [(path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in states]
        return sha256(json.dumps([_VERSION, self.split, state]).encode()).hexdigest()
