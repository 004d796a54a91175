"""What the config of a trained model says beside its weights: special ids, and stretched positions."""

import json
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dualign.checkpoints.context import ContextConfig, stretched_config


def set_trained_keys(
    config_json: Path, model: PreTrainedModel, context: ContextConfig | None
) -> None:
    """Put the trained model's eos and pad ids, and its positions, into the config of folded weights, the base's."""
    config = json.loads(config_json.read_text(encoding="utf-8"))
    if context is not None:
        config = stretched_config(config, context)
    config |= {"eos_token_id": model.config.eos_token_id, "pad_token_id": model.config.pad_token_id}
    config_json.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def raise_text_limit(tokenizer: PreTrainedTokenizerBase, context: ContextConfig | None) -> None:
    """Let the tokenizer's `model_max_length` be no shorter than the stretched context."""
    if context is not None:
        tokenizer.model_max_length = max(tokenizer.model_max_length, context.length)
