"""The tokens around a document of raw text: a tokenizer's own, not those of a chat template."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ENDS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<eos>",
    "</s>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
"""What separates documents in the pretraining of public families: Qwen, SmolLM and Phi; Llama 3, SmolLM3
and Granite; Gemma; Mistral and Llama 2; DeepSeek.
"""


def document_marks(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, str]:
    """Return what stands before and after a document: the token that the tokenizer itself begins a
    text with ("" for most), and the one that ended documents in pretraining.

    The eos token isn't asked first: in chat models it is the end of a turn, and text that ends in
    one would teach a model to stop talking where a page ends. If none of the known names is a
    special token here, eos it is.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    end = next((name for name in _ENDS if name in special), tokenizer.eos_token)
    first = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True).ids[:1]
    begins = bool(first) and tokenizer.bos_token is not None and first[0] == tokenizer.bos_token_id
    return str(tokenizer.bos_token) if begins else "", str(end or "")
