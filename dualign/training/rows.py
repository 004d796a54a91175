"""The rows of a training stage: what is asked of the data path, and what is said of the answer."""

import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from dualign.data.request import DataRequest
from dualign.distributed import gather
from dualign.errors import DataError
from dualign.models.data_request import load_data_request
from dualign.models.source import ModelSource

logger = logging.getLogger(__name__)
_COMPARED = 16  # rows, of the whole set; a packed one may have 131,072 tokens


def request_rows(stage: Any, source: ModelSource, *, seed: int) -> DataRequest:
    """Return the data of a training stage with tokenizer and chat template; raises as `load_data_request`."""
    return load_data_request(
        stage.data,
        source,
        stage.template,
        stage.template_kwargs,
        stage.switch,
        seed=seed,
        new_tokens=stage.new_tokens,
    )


def tell(notes: Iterable[str]) -> None:
    """Log what is to say about rows before the first step, warnings as such."""
    for note in notes:
        logger.log(logging.WARNING if note.startswith("warning") else logging.INFO, note)


def require_same_rows(rows: Sequence[Any]) -> None:
    """Refuse a launch whose ranks have other rows: each takes its share by number, so some would be
    trained twice and others never.

    Args:
        rows: the prepared rows of this process.

    Raises:
        DataError: a rank has other ones than rank 0.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    every = max(1, len(rows) // _COMPARED)
    sample = [rows[number] for number in range(0, len(rows), every)]
    text = json.dumps([len(rows), sample], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()
    ranks = gather((socket.gethostname(), len(rows), digest))
    first = ranks[0]
    for number, (host, count, other) in enumerate(ranks):
        if other != first[2]:
            raise DataError(
                f"rank {number} on {host} prepared {count} rows that aren't the {first[1]} of rank 0 on "
                f"{first[0]}: a data set of the Hub that changed between two downloads, for example; "
                "name its revision, or share HF_HOME among the machines"
            )
