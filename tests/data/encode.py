"""One row encoded alone."""

from transformers import PreTrainedTokenizerBase

from dualign.data.config import TooLong
from dualign.data.faults import RowError
from dualign.data.text.spans import RenderedRow
from dualign.data.tokens.labels import Example, encode_batch


def encode(
    rendered: RenderedRow,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int | None,
    too_long: TooLong = "error",
) -> Example:
    """The example of one row; its fault is raised."""
    (example,) = encode_batch([rendered], tokenizer, max_tokens=max_tokens, too_long=too_long)
    if isinstance(example, RowError):
        raise example
    return example
