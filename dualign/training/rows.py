"""The rows of a training stage: what is asked of the data path, and what is said of the answer."""

import logging
from collections.abc import Iterable
from typing import Any

from dualign.data.request import DataRequest
from dualign.models.data_request import load_data_request
from dualign.models.source import ModelSource

logger = logging.getLogger(__name__)


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
