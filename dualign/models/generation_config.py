"""generation_config.json of a trained model: the base's, made valid."""

import logging
from typing import Any

from transformers import GenerationConfig

logger = logging.getLogger(__name__)
_SAMPLING = frozenset(
    ["temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"]
)
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def valid_generation_config(config: Any) -> Any:
    """Return a configuration that can be saved, and says what the base's says as far as that is valid.

    Many bases have one with `do_sample: false` and a temperature, which transformers reads and refuses to write:
    there the model answers greedily, so the temperature goes.
    """
    if not (reason := _invalid(config)):
        return config
    values = config.to_diff_dict()
    for name in _SAMPLING if not values.get("do_sample") else ():
        values.pop(name, None)
    repaired = GenerationConfig.from_dict(values)
    if _invalid(repaired):
        repaired = GenerationConfig(**{name: values[name] for name in _TOKENS if name in values})
    dropped = sorted(set(config.to_diff_dict()) - set(repaired.to_diff_dict()))
    logger.warning(
        "the base's generation_config.json is invalid (%s); saved without %s",
        reason,
        ", ".join(dropped) or "the invalid values",
    )
    return repaired


def _invalid(config: Any) -> str:
    """Return why transformers wouldn't write a configuration."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        return " ".join(str(error).split())[:200]
    return ""
