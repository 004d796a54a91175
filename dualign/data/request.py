"""A request for prepared data."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dualign.data.config import DataConfig
from dualign.data.text.template import ChatTemplate

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
