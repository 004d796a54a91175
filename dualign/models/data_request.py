"""A model's reference and a recipe's data -> what is asked of the data path."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualign.data.config import DataConfig, data_config
from dualign.data.request import DataRequest
from dualign.models.new_tokens import NewToken
from dualign.models.source import ModelSource, resolve_model
from dualign.models.tokenizer import load_tokenizer
from dualign.switch import Switch, read_switch


def load_data_request(
    data: DataConfig | Mapping[str, Any] | str | Path,
    model: ModelSource | str,
    template: str,
    template_kwargs: Mapping[str, Any] | None,
    switch: Switch | Mapping[str, Any] | None,
    *,
    seed: int,
    new_tokens: Sequence[NewToken] = (),
) -> DataRequest:
    """Return the data's configuration with tokenizer and chat template as a stage trains with them.

    Raises:
        ConfigError: a key of the data or of the switch is wrong.
        DualignError: the tokenizer or the template can't be read, or a new token can't be added.
    """
    config = data_config(data)
    tokenizer, chat = load_tokenizer(
        model if isinstance(model, ModelSource) else resolve_model(model),
        template,
        template_kwargs or {},
        read_switch(switch, "switch"),
        folds_system=config.folds_system,
        new_tokens=new_tokens,
    )
    return DataRequest(config, tokenizer, chat, seed=seed)
