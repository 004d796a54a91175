"""The same function in wider rows: a Llama whose width is a multiple of 256, which K- and IQ-quants can take.

    python -m benchmarks.wider runs/quickstart/merged WIDE

SmolLM2-135M is 576 wide. Here each block of 256 columns has 192 of its columns and 64 zeros, so that the real ones
keep their numbers and what is multiplied with them, and a fourth key head of zeros with its three query heads fills
the attention. The mean square of a wider row is smaller by the share of zeros: weights and eps of the norms make up
for that. Nothing else changes, so the answers do by the rounding of float32 alone.
"""

import argparse
import copy
import math
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from dualign.models.loading import load_model
from dualign.models.tokenizer import load_chat_tokenizer

_BLOCK = 256
_WRITES = ("o_proj", "down_proj")
"""What adds to the residual stream; all else reads it."""
_TEXTS = (
    "<|im_start|>user\nWhat is 7 + 5?<|im_end|>\n<|im_start|>assistant\n7 + 5 = 12<|im_end|>",
    "Prices: apple 2, fig 5, egg 8. The capital of France is Paris, and the sea is deep and blue.",
)


def widened(model: PreTrainedModel) -> PreTrainedModel:
    """Return the wider form of a Llama in float32."""
    config = model.config
    if config.model_type != "llama" or config.attention_bias or config.mlp_bias:
        raise SystemExit(f"expected a Llama without biases, found {config.model_type}")
    width = -(-config.hidden_size // _BLOCK) * _BLOCK
    head = config.hidden_size // config.num_attention_heads
    sharing = config.num_attention_heads // config.num_key_value_heads
    keys = width // (head * sharing)
    if config.hidden_size % (width // _BLOCK) or width % (head * sharing):
        raise SystemExit(f"{config.hidden_size} columns and heads of {head} don't fill {width}")
    wide = copy.deepcopy(config)
    wide.hidden_size, wide.head_dim = width, head
    wide.num_attention_heads, wide.num_key_value_heads = sharing * keys, keys
    share = config.hidden_size / width
    wide.rms_norm_eps = config.rms_norm_eps * share
    wider = AutoModelForCausalLM.from_config(wide, dtype=torch.float32)
    places = torch.arange(width).reshape(-1, _BLOCK)[:, : int(_BLOCK * share)].flatten()
    narrow = model.state_dict()
    filled = {
        name: _filled(name.split(".")[-2], narrow[name], empty, places)
        for name, empty in wider.state_dict().items()
    }
    norms = {name: t * math.sqrt(share) for name, t in filled.items() if t.dim() == 1}
    wider.load_state_dict(filled | norms)
    wider.generation_config = model.generation_config
    return wider.eval()


def _filled(part: str, values: Tensor, empty: Tensor, places: Tensor) -> Tensor:
    """Return a tensor of the wider model: zeros around the narrow one's numbers."""
    full = torch.zeros_like(empty)
    if values.dim() == 1:
        full[places] = values
    elif part in _WRITES:
        full[places, : values.shape[1]] = values
    else:
        full[: len(values), places] = values
    return full


def difference(
    first: PreTrainedModel, second: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> float:
    """Return the largest difference of a log-probability on a few texts."""
    worst = 0.0
    for text in _TEXTS:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            sides = [model(ids).logits.log_softmax(-1) for model in (first, second)]
        worst = max(worst, float((sides[0] - sides[1]).abs().max()))
    return worst


def main() -> None:
    """Write the model and say how far its numbers are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    model, tokenizer = (
        load_model(arguments.model, dtype="float32"),
        load_chat_tokenizer(arguments.model),
    )
    wider = widened(model)
    print(f"largest difference of a log-probability: {difference(model, wider, tokenizer):.1e}")
    wider.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
