"""Combine LoRA adapters into one, and fold an adapter into plain weights.

Preference training on an SFT adapter leaves two adapters on one base. Stacking their factors gives
one adapter that is exactly their sum: `s1*B1@A1 + s2*B2@A2 = [s1*B1, s2*B2] @ [A1; A2]`.

Shapes: R rank, I in, O out.
"""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from dualign.checkpoints.checkpoint import HEAD
from dualign.checkpoints.folding import AdaptedWeights
from dualign.checkpoints.lora import (
    PREFIX,
    TOKENS,
    Adapter,
    LoraModule,
    read_adapter,
)
from dualign.checkpoints.shards import write_side_files, write_weights
from dualign.checkpoints.token_rows import joined_rows, trainable_indices
from dualign.checkpoints.weights import open_weights
from dualign.errors import MergeError
from dualign.model_ref import adapter_base

_FIX = (
    "fold it into its base first, and train the next adapter on the result, or merge the folded "
    "models"
)
_HEAD_PATH = HEAD.removesuffix(".weight")
# The factors of a weight are stored under other names when it is an embedding.
_NAMES = {False: ("lora_A.weight", "lora_B.weight"), True: ("lora_embedding_A", "lora_embedding_B")}


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterSize:
    """Size of a written adapter."""

    modules: int
    rank: int
    """the largest rank"""
    parameters: int


def concatenate(
    folders: Sequence[Path], out: Path, *, weights: Sequence[float] | None = None
) -> AdapterSize:
    """Write to `out` one adapter that equals the weighted sum of all, active on their base.

    Ranks add up, so nothing is lost; factors are float32 and every scaling is exactly 1. A module
    that only one adapter has keeps its rank. `out` gets the two files of an adapter, no more, and
    loads with `PeftModel.from_pretrained`.

    Raises:
        MergeError: the sum isn't a LoRA adapter (DoRA, modules_to_save, tokens that two of them
            trained), or the bases differ.
    """
    weights = weights or [1.0] * len(folders)
    adapters = read_summands(folders, weights)
    modules = {path: stack_ranks(adapters, weights, path) for path in module_paths(adapters)}
    return write_adapter(out, modules, adapters)


def read_summands(folders: Sequence[Path], weights: Sequence[float]) -> tuple[Adapter, ...]:
    """Read adapters of one base whose changes add up.

    A single adapter with weight 1 may hold other tensors besides its low-rank changes, and one of
    several rows of trained tokens, which no other has.

    Raises:
        MergeError: their sum isn't a LoRA adapter, or their bases, revisions or ties differ.
    """
    adapters = tuple(read_adapter(folder) for folder in folders)
    for adapter, weight in zip(adapters, weights, strict=True):
        _require_linear(adapter)
        if list(weights) != [1]:
            _require_summable(adapter, weight)
    for other in adapters[1:]:
        _require_same_base(adapters[0], other)
    return adapters


def module_paths(adapters: Sequence[Adapter]) -> list[str]:
    """List every module that an adapter changes.

    A head with the change of the tied embedding is left out: `write_adapter` adds it.

    Raises:
        MergeError: one adapter ties the head's change to the embedding's, another changes the head
            by itself.
    """
    paths = {path for adapter in adapters for path in adapter.modules}
    ties = [adapter for adapter in adapters if _ties_head(adapter)]
    if not ties:
        return sorted(paths)
    for adapter in adapters:
        if _HEAD_PATH in adapter.modules and adapter not in ties:
            raise MergeError(
                f"{ties[0].folder} changes the head as it changes the embedding, {adapter.folder} by itself; {_FIX}"
            )
    return sorted(paths - {_HEAD_PATH})


def _ties_head(adapter: Adapter) -> bool:
    """Return True if the head's factors are the embedding's, as with PEFT's ensure_weight_tying."""
    head = adapter.modules.get(_HEAD_PATH)
    embeddings = [module for module in adapter.modules.values() if module.embedding]
    if head is None or len(embeddings) != 1:
        return False
    A, B = embeddings[0].B.T, embeddings[0].A.T
    return torch.equal(head.A, A) and torch.equal(head.B, B)


def with_tied_head(modules: Mapping[str, LoraModule]) -> dict[str, LoraModule]:
    """Add a head that changes as the embedding does.

    PEFT keeps one copy of both, so the factors must be the same numbers, not just have the same
    product.
    """
    embedding = next(module for module in modules.values() if module.embedding)
    head = LoraModule(A=embedding.B.T, B=embedding.A.T, scaling=1.0, embedding=False)
    return {**modules, _HEAD_PATH: head}


def stack_ranks(adapters: Sequence[Adapter], weights: Sequence[float], path: str) -> LoraModule:
    """Return the weighted sum of the adapters' changes of a module, with their ranks stacked."""
    parts = [
        (adapter.modules[path], weight)
        for adapter, weight in zip(adapters, weights, strict=True)
        if path in adapter.modules
    ]
    if len({(part.embedding, part.shape) for part, _ in parts}) > 1:
        shapes = [(tuple(part.B.shape), tuple(part.A.shape)) for part, _ in parts]
        raise MergeError(
            f"{path}: the adapters have factors of shapes {shapes}; they aren't of one base"
        )
    A_RI = torch.cat([part.A.double() for part, _ in parts], dim=0)
    B_OR = torch.cat([part.B.double() * (part.scaling * weight) for part, weight in parts], dim=1)
    return LoraModule(A=A_RI, B=B_OR, scaling=1.0, embedding=parts[0][0].embedding)


def write_adapter(
    out: Path, modules: Mapping[str, LoraModule], adapters: Sequence[Adapter]
) -> AdapterSize:
    """Write the two files of an adapter made of others. The modules' scaling is 1."""
    if any(map(_ties_head, adapters)):
        modules = with_tied_head(modules)
    config = _config(adapters, {path: module.rank for path, module in modules.items()})
    return save_adapter(out, modules, config, others=_others(adapters, modules))


def save_adapter(
    out: Path,
    modules: Mapping[str, LoraModule],
    config: Mapping[str, Any],
    *,
    others: Mapping[str, Tensor],
) -> AdapterSize:
    """Write adapter_model.safetensors, in float32, and adapter_config.json.

    Args:
        others: whole tensors by their names in the file.
    """
    tensors = {name: tensor.contiguous() for name, tensor in others.items()}
    for path, module in modules.items():
        names = _NAMES[module.embedding]
        tensors[f"{path}.{names[0]}"] = module.A.float().contiguous()
        tensors[f"{path}.{names[1]}"] = module.B.float().contiguous()
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        {PREFIX + name: tensor for name, tensor in tensors.items()},
        out / "adapter_model.safetensors",
        {"format": "pt"},
    )
    (out / "adapter_config.json").write_text(
        json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    return AdapterSize(
        modules=len(modules),
        rank=int(config["r"]),
        parameters=sum(m.A.numel() + m.B.numel() for m in modules.values()),
    )


def ranks_in_config(ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return the part of a config with each module's rank, and alpha = rank: the scaling is 1."""
    largest = max(ranks.values())
    pattern = {path: rank for path, rank in ranks.items() if rank != largest}
    return {
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "use_rslora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def fold(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16", "input"] = "input",
) -> None:
    """Write to `out` the plain checkpoint that equals the adapter active on `base`.

    `base` may be an adapter on a base itself. One tensor at a time is in memory. Each number is
    rounded once, to `dtype` (`input`: the type of the base). Tokenizer and template come from the
    adapter's folder if it has them. A tied head stays tied if head and embedding change alike; else
    both are written and config.json says so.

    Raises:
        MergeError: the adapter can't be folded exactly, or doesn't fit the base.
    """
    weights = AdaptedWeights(open_weights(base), read_adapter(adapter))
    out.mkdir(parents=True, exist_ok=True)
    write_weights(weights, out, dtype=dtype)
    write_side_files(weights, out, dtype=dtype)


def _config(adapters: Sequence[Adapter], ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return the first adapter's config with the ranks of the result."""
    first = adapters[0]
    config = {**first.config, **ranks_in_config(ranks)}
    config["base_model_name_or_path"] = _base_of(first)  # a relative path starts at its folder
    config["task_type"] = next(
        filter(None, (adapter.config.get("task_type") for adapter in adapters)), None
    )
    config["trainable_token_indices"] = trainable_indices(
        joined_rows(adapters, remedy=_FIX), adapters
    )
    same_modules = all(set(adapter.modules) == set(ranks) for adapter in adapters)
    if not same_modules or not isinstance(first.config.get("target_modules"), list):
        # Full paths: a pattern wide enough for all could reach modules that none of them has.
        config["target_modules"] = sorted(ranks)
        config |= dict.fromkeys(("layers_to_transform", "layers_pattern", "exclude_modules"))
    return config


def _require_linear(adapter: Adapter) -> None:
    if adapter.config.get("use_dora"):
        raise MergeError(
            f"{adapter.folder}: use_dora: the sum of DoRA adapters isn't an adapter, as each "
            f"rescales the whole weight; {_FIX}; `dualign adapter extract` makes plain LoRA of that"
        )
    if not adapter.modules:
        raise MergeError(f"{adapter.folder}: has no LoRA tensors")


def _require_summable(adapter: Adapter, weight: float) -> None:
    config = adapter.config
    if adapter.token_rows and weight != 1:
        raise MergeError(
            f"{adapter.folder}: trainable tokens replace rows and can't be weighted; {_FIX}"
        )
    bias = config.get("bias", "none")
    if config.get("modules_to_save") or bias != "none":
        what = (
            f"modules_to_save {config['modules_to_save']}"
            if config.get("modules_to_save")
            else f"bias: {bias}"
        )
        raise MergeError(
            f"{adapter.folder}: {what} replaces whole tensors, which can't be added up; {_FIX}"
        )


def _require_same_base(first: Adapter, second: Adapter) -> None:
    bases = [_base_of(adapter) for adapter in (first, second)]
    if bases[0] != bases[1]:
        raise MergeError(
            f"{first.folder} is an adapter on {bases[0]!r}, {second.folder} on {bases[1]!r}; "
            "all must be trained on one base; if these are two names of it, write the same one into both "
            "adapter_config.json"
        )
    revisions = [adapter.config.get("revision") for adapter in (first, second)]
    if revisions[0] != revisions[1]:
        raise MergeError(
            f"{first.folder} is an adapter on revision {revisions[0]!r} of {bases[0]}, {second.folder} on "
            f"{revisions[1]!r}; if the weights are the same, write the same one into both adapter_config.json"
        )
    if bool(first.config.get("ensure_weight_tying")) != bool(
        second.config.get("ensure_weight_tying")
    ):
        raise MergeError(
            f"{first.folder} and {second.folder}: only one of them has ensure_weight_tying; fold them, and merge "
            "the models"
        )


def _base_of(adapter: Adapter) -> str:
    base = adapter_base(adapter.folder, adapter.config)
    return str(base.path.resolve()) if base.path and base.path.exists() else base.text


def _others(adapters: Sequence[Adapter], modules: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors besides low-rank changes by name in the file; equal in all adapters.

    With several adapters these are embeddings that PEFT saved too.
    """
    replaced: dict[str, Tensor] = {}
    for adapter in adapters:
        for name, tensor in adapter.replaced.items():
            if name in replaced and not torch.equal(replaced[name], tensor):
                raise MergeError(
                    f"{adapter.folder}: {name} differs from the one in {adapters[0].folder}; "
                    "fold one of them first"
                )
            replaced[name] = tensor
    low_rank = set(modules)
    others = {_under_base_layer(name, low_rank): tensor for name, tensor in replaced.items()}
    for path, (_, rows) in joined_rows(adapters, remedy=_FIX).items():
        if path in low_rank or f"{path}.weight" in replaced:
            raise MergeError(f"{path}: an adapter changes it, and another replaces rows; {_FIX}")
        others[path + TOKENS] = rows
    return others


def _under_base_layer(name: str, low_rank: Set[str]) -> str:
    module, _, kind = name.rpartition(".")
    return f"{module}.base_layer.{kind}" if module in low_rank else name
