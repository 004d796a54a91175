"""One row rendered and encoded alone."""

from transformers import PreTrainedTokenizerBase

from dualign.data.config import Supervise, TooLong
from dualign.data.conversation import Conversation
from dualign.data.faults import RowError
from dualign.data.text.spans import RenderedRow, render_rows
from dualign.data.text.template import ChatTemplate
from dualign.data.tokens.labels import Example, encode_batch


def render_row(
    template: ChatTemplate, conversation: Conversation, supervise: Supervise
) -> RenderedRow:
    """The row of a conversation that the template makes one row of."""
    (row,) = render_rows(template, conversation, supervise)
    return row


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
