"""Adapter algebra: two LoRA adapters made one, and an adapter made plain weights.

Preference training on an SFT adapter leaves two adapters on one base. Stacking their factors gives
one adapter that is exactly their sum: `s1*B1@A1 + s2*B2@A2 = [s1*B1, s2*B2] @ [A1; A2]`. Shapes: R
rank, I in, O out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from dualign.checkpoints.folding import Adapted
from dualign.checkpoints.lora import PREFIX, Adapter, LoraModule, read_adapter
from dualign.checkpoints.shards import write_side_files, write_weights
from dualign.checkpoints.weights import open_weights
from dualign.errors import MergeError

# The factors of a weight are stored under other names when it is an embedding.
_NAMES = {False: ("lora_A.weight", "lora_B.weight"), True: ("lora_embedding_A", "lora_embedding_B")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Concatenated:
    """What came out of a concatenation."""

    modules: int
    rank: int
    """the largest rank"""
    parameters: int


def concatenate(first: Path, second: Path, out: Path) -> Concatenated:
    """Write to `out` the one adapter that equals `first` and `second` both active on their base.

    Ranks add up, so nothing is lost; factors are float32 and every scaling is exactly 1. A module
    that only one of them has keeps that one's rank. `out` gets the two files of an adapter, no
    more, and loads with `PeftModel.from_pretrained`.

    Raises:
        MergeError: the sum isn't a LoRA adapter (DoRA, modules_to_save, trainable tokens), or the
            bases differ.
    """
    pair = read_adapter(first), read_adapter(second)
    for adapter in pair:
        _require_summable(adapter)
    _require_same_base(*pair)
    paths = sorted({*pair[0].modules, *pair[1].modules})
    modules = {
        path: _stack([one.modules[path] for one in pair if path in one.modules], path)
        for path in paths
    }
    tensors = _shared_embeddings(*pair)
    for path, module in modules.items():
        names = _NAMES[module.embedding]
        tensors[f"{path}.{names[0]}"], tensors[f"{path}.{names[1]}"] = module.A, module.B
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        {PREFIX + name: tensor for name, tensor in tensors.items()},
        out / "adapter_model.safetensors",
        {"format": "pt"},
    )
    config = _config(pair[0], pair[1], {path: module.rank for path, module in modules.items()})
    (out / "adapter_config.json").write_text(
        json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    return Concatenated(
        modules=len(modules),
        rank=int(config["r"]),
        parameters=sum(m.A.numel() + m.B.numel() for m in modules.values()),
    )


def fold(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16", "input"] = "input",
) -> None:
    """Write to `out` the plain checkpoint that equals the adapter active on `base`.

    `base` may be an adapter on a base itself. One tensor at a time is in memory. Sums are float32
    with one rounding to `dtype` (`input`: as the base is stored). Tokenizer and template come from
    the adapter's folder where it has them. A tied head stays tied when head and embedding change
    alike; else both are written and config.json says so.

    Raises:
        MergeError: the adapter can't be folded exactly, or doesn't fit the base.
    """
    weights = Adapted(open_weights(base), read_adapter(adapter))
    out.mkdir(parents=True, exist_ok=True)
    write_weights(weights, out, dtype=dtype)
    write_side_files(weights, out, dtype=dtype)


def _stack(parts: list[LoraModule], path: str) -> LoraModule:
    if len({(part.embedding, part.A.shape[1], part.B.shape[0]) for part in parts}) > 1:
        shapes = [(tuple(part.B.shape), tuple(part.A.shape)) for part in parts]
        raise MergeError(
            f"{path}: the two adapters have factors of shapes {shapes}; they aren't of one base"
        )
    A_RI = torch.cat([part.A.float() for part in parts], dim=0)
    B_OR = torch.cat([part.B.float() * part.scaling for part in parts], dim=1)
    return LoraModule(A=A_RI, B=B_OR, scaling=1.0, embedding=parts[0].embedding)


def _config(first: Adapter, second: Adapter, ranks: Mapping[str, int]) -> dict[str, Any]:
    """The first one's config, with alpha = rank in every module, so that the scaling is 1."""
    rank = max(ranks.values())
    other = {path: one for path, one in ranks.items() if one != rank}
    config = {
        **first.config,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": other,
    }
    config |= {"use_rslora": False, "init_lora_weights": True, "inference_mode": True}
    config["task_type"] = first.config.get("task_type") or second.config.get("task_type")
    same_places = set(first.modules) == set(second.modules)
    if not same_places or not isinstance(first.config.get("target_modules"), list):
        # Full paths: a pattern wide enough for both could reach modules that neither has.
        config["target_modules"] = sorted(ranks)
        config |= dict.fromkeys(("layers_to_transform", "layers_pattern", "exclude_modules"))
    return config


def _require_summable(adapter: Adapter) -> None:
    config, fix = (
        adapter.config,
        "fold it into its base first, and train the next adapter on the result",
    )
    if config.get("use_dora"):
        raise MergeError(
            f"{adapter.folder}: use_dora: the sum of DoRA adapters isn't an adapter, as each "
            f"rescales the whole weight; {fix}"
        )
    if adapter.token_rows or config.get("trainable_token_indices"):
        raise MergeError(
            f"{adapter.folder}: trainable tokens replace rows and can't be added up; {fix}"
        )
    bias = config.get("bias", "none")
    if config.get("modules_to_save") or bias != "none":
        what = (
            f"modules_to_save {config['modules_to_save']}"
            if config.get("modules_to_save")
            else f"bias: {bias}"
        )
        raise MergeError(
            f"{adapter.folder}: {what} replaces whole tensors, which can't be added up; {fix}"
        )
    if not adapter.modules:
        raise MergeError(f"{adapter.folder}: has no LoRA tensors")


def _require_same_base(first: Adapter, second: Adapter) -> None:
    names = [one.config.get("base_model_name_or_path") or "" for one in (first, second)]
    places = {str((one.folder / name).resolve()) if (one.folder / name).is_dir() else name
              for one, name in zip((first, second), names, strict=True)}  # fmt: skip
    if len(places) > 1:
        raise MergeError(
            f"{first.folder} is an adapter on {names[0]!r}, {second.folder} on {names[1]!r}; "
            "both must be trained on one base"
        )


def _shared_embeddings(first: Adapter, second: Adapter) -> dict[str, Tensor]:
    """Embeddings that PEFT saved along, by their names in the file; the same in both."""
    kept: dict[str, Tensor] = {}
    for adapter in (first, second):
        for name, tensor in adapter.replaced.items():
            if name in kept and not torch.equal(kept[name], tensor):
                raise MergeError(
                    f"{second.folder}: {name} differs from the one in {first.folder}; "
                    "fold one of them first"
                )
            kept[name] = tensor
    low_rank = {f"{path}.weight" for path in (*first.modules, *second.modules)}
    return {
        name.replace(".weight", ".base_layer.weight")
        if name in low_rank
        else name: tensor.contiguous()
        for name, tensor in kept.items()
    }
