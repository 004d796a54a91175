"""benchmarks/wider.py: the same function in rows that K- and IQ-quants can take."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.wider import widened


def test_wider_rows_give_the_same_numbers() -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = LlamaConfig(
        **shape,
        vocab_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        rms_norm_eps=0.1,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.norm.weight.uniform_(0.5, 2)
    wider = widened(model)
    assert wider.config.hidden_size == 768 and wider.config.num_attention_heads == 12
    ids = torch.randint(0, 64, (2, 30))
    with torch.inference_mode():
        narrow, wide = (side(ids).logits for side in (model, wider))
    assert (narrow - wide).abs().max() < 1e-4 * narrow.abs().max()
