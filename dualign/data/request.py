"""A request for prepared data."""

from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dualign.data.config import DataConfig
from dualign.data.text.template import ChatTemplate
from dualign.data.workers import Share

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class DataRequest:
    """A recipe's data with all that its rows depend on. Relative paths start at `base`."""

    data: DataConfig
    tokenizer: "PreTrainedTokenizerBase"
    template: ChatTemplate
    _: KW_ONLY
    seed: int
    base: Path | None = None
    any_modes: bool = False
    """rows of both modes may be asked in one way: they are scored, not trained on"""
    first: int | None = None
    """read no more than so many rows of each source, its first ones"""
    share: Share | None = None
    """the part of the work that this process does; None: all of it"""


LOOKED_AT = 2000
"""Rows of each stream that are looked at where nothing is trained."""


def without_stream(request: DataRequest) -> DataRequest:
    """Return a request for the first rows of each stream, as a table; one of no streams as it is.

    What the first rows alone may not hold is left out: shares of modes, and held-out rows. Each source
    has a share, so that they can always be had: the one without gets the rest.
    """
    data = request.data
    if data.stream is None:
        return request
    trained = [source for source in data.sources if not source.validation]
    rest = 1 - sum(source.share or 0.0 for source in trained)
    sources = tuple(
        replace(source, share=rest)
        if len(trained) > 1 and source in trained and source.share is None
        else source
        for source in data.sources
    )
    table = replace(data, sources=sources, streaming=None, mix=None, validation_rows=0, cache=False)
    return replace(request, data=table, first=LOOKED_AT)
