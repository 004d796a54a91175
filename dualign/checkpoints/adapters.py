"""Adapter algebra: LoRA adapters made one, and an adapter made plain weights.

Preference training on an SFT adapter leaves two adapters on one base. Stacking their factors gives
one adapter that is exactly their sum: `s1*B1@A1 + s2*B2@A2 = [s1*B1, s2*B2] @ [A1; A2]`. Shapes: R
rank, I in, O out.
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
from dualign.checkpoints.lora import PREFIX, TOKENS, Adapter, LoraModule, read_adapter
from dualign.checkpoints.shards import write_side_files, write_weights
from dualign.checkpoints.weights import open_weights
from dualign.errors import MergeError
from dualign.model_ref import adapter_base

_FIX = "fold it into its base first, and train the next adapter on the result, or merge the folded models"
HEAD_PATH = HEAD.removesuffix(".weight")
# The factors of a weight are stored under other names when it is an embedding.
_NAMES = {False: ("lora_A.weight", "lora_B.weight"), True: ("lora_embedding_A", "lora_embedding_B")}


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterSize:
    """How large the adapter is that was written."""

    modules: int
    rank: int
    """the largest rank"""
    parameters: int


def concatenate(
    folders: Sequence[Path], out: Path, *, weights: Sequence[float] | None = None
) -> AdapterSize:
    """Write to `out` the one adapter that equals all of them active on their base, each times its weight.

    Ranks add up, so nothing is lost; factors are float32 and every scaling is exactly 1. A module
    that only one of them has keeps that one's rank. `out` gets the two files of an adapter, no
    more, and loads with `PeftModel.from_pretrained`.

    Raises:
        MergeError: the sum isn't a LoRA adapter (DoRA, modules_to_save, trainable tokens), or the
            bases differ.
    """
    weights = weights or [1.0] * len(folders)
    adapters = read_summands(folders, weights)
    modules = {path: stack(adapters, weights, path) for path in paths_of(adapters)}
    return write_adapter(out, modules, adapters)


def read_summands(folders: Sequence[Path], weights: Sequence[float]) -> tuple[Adapter, ...]:
    """Adapters of one base whose changes add up.

    Of a single adapter with weight 1 only the low-rank part needs to be one; what it holds besides stays as it is.

    Raises:
        MergeError: their sum isn't a LoRA adapter, or their bases, revisions or ties differ.
    """
    adapters = tuple(read_adapter(folder) for folder in folders)
    for adapter in adapters:
        _require_linear(adapter)
        if list(weights) != [1]:
            _require_summable(adapter)
    for other in adapters[1:]:
        _require_same_base(adapters[0], other)
    return adapters


def paths_of(adapters: Sequence[Adapter]) -> list[str]:
    """Every module that one of them changes. Where another doesn't have it, its change is zero.

    A head whose change is that of the tied embedding isn't one of them: `write_adapter` adds it.

    Raises:
        MergeError: one adapter ties the head's change to the embedding's, another changes the head by itself.
    """
    paths = {path for adapter in adapters for path in adapter.modules}
    ties = [adapter for adapter in adapters if _ties_head(adapter)]
    if not ties:
        return sorted(paths)
    for adapter in adapters:
        if HEAD_PATH in adapter.modules and adapter not in ties:
            raise MergeError(
                f"{ties[0].folder} changes the head as it changes the embedding, {adapter.folder} by itself; {_FIX}"
            )
    return sorted(paths - {HEAD_PATH})


def _ties_head(adapter: Adapter) -> bool:
    """Whether the head's factors are the embedding's, as PEFT writes them with ensure_weight_tying."""
    head = adapter.modules.get(HEAD_PATH)
    embeddings = [module for module in adapter.modules.values() if module.embedding]
    if head is None or len(embeddings) != 1:
        return False
    A, B = embeddings[0].B.T, embeddings[0].A.T
    return torch.equal(head.A, A) and torch.equal(head.B, B)


def with_tied_head(modules: Mapping[str, LoraModule]) -> dict[str, LoraModule]:
    """The modules, and a head that changes as the embedding does.

    PEFT keeps one copy of the two, so the factors have to be the same numbers and not just have the same product.
    """
    embedding = next(module for module in modules.values() if module.embedding)
    head = LoraModule(A=embedding.B.T, B=embedding.A.T, scaling=1.0, embedding=False)
    return {**modules, HEAD_PATH: head}


def stack(adapters: Sequence[Adapter], weights: Sequence[float], path: str) -> LoraModule:
    """The weighted sum of their changes of one module, with the ranks side by side."""
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
    """Write the two files of an adapter that is made of others: these modules, whose scaling is 1."""
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

    `others` are whole tensors, by their names in the file.
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
    """The part of a config that says which rank each module has, with alpha = rank: the scaling is 1."""
    rank = max(ranks.values())
    other = {path: one for path, one in ranks.items() if one != rank}
    return {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": other,
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

    `base` may be an adapter on a base itself. One tensor at a time is in memory. Sums are float32
    with one rounding to `dtype` (`input`: as the base is stored). Tokenizer and template come from
    the adapter's folder where it has them. A tied head stays tied when head and embedding change
    alike; else both are written and config.json says so.

    Raises:
        MergeError: the adapter can't be folded exactly, or doesn't fit the base.
    """
    weights = AdaptedWeights(open_weights(base), read_adapter(adapter))
    out.mkdir(parents=True, exist_ok=True)
    write_weights(weights, out, dtype=dtype)
    write_side_files(weights, out, dtype=dtype)


def _config(adapters: Sequence[Adapter], ranks: Mapping[str, int]) -> dict[str, Any]:
    """The first one's config, with the ranks that there are now."""
    first = adapters[0]
    config = {**first.config, **ranks_in_config(ranks)}
    config["base_model_name_or_path"] = _base_of(first)  # a relative path is seen from its folder
    config["task_type"] = next(
        filter(None, (one.config.get("task_type") for one in adapters)), None
    )
    same_places = all(set(one.modules) == set(ranks) for one in adapters)
    if not same_places or not isinstance(first.config.get("target_modules"), list):
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


def _require_summable(adapter: Adapter) -> None:
    config = adapter.config
    if adapter.token_rows or config.get("trainable_token_indices"):
        raise MergeError(
            f"{adapter.folder}: trainable tokens replace rows and can't be added up; {_FIX}"
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
    places = [_base_of(one) for one in (first, second)]
    if places[0] != places[1]:
        raise MergeError(
            f"{first.folder} is an adapter on {places[0]!r}, {second.folder} on {places[1]!r}; "
            "all must be trained on one base; if these are two names of it, write the same one into both "
            "adapter_config.json"
        )
    revisions = [one.config.get("revision") for one in (first, second)]
    if revisions[0] != revisions[1]:
        raise MergeError(
            f"{first.folder} is an adapter on revision {revisions[0]!r} of {places[0]}, {second.folder} on "
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
    """What is there besides low-rank changes, by its names in the file; the same in all that have it.

    Of several adapters that is embeddings that PEFT saved along.
    """
    kept: dict[str, Tensor] = {}
    for adapter in adapters:
        for name, tensor in adapter.replaced.items():
            if name in kept and not torch.equal(kept[name], tensor):
                raise MergeError(
                    f"{adapter.folder}: {name} differs from the one in {adapters[0].folder}; "
                    "fold one of them first"
                )
            kept[name] = tensor
    low_rank = set(modules)
    named = {_under_base_layer(name, low_rank): tensor for name, tensor in kept.items()}
    for adapter in adapters:
        for name, (_, rows) in adapter.token_rows.items():
            named[name.removesuffix(".weight") + TOKENS] = rows
    return named


def _under_base_layer(name: str, low_rank: Set[str]) -> str:
    module, _, kind = name.rpartition(".")
    return f"{module}.base_layer.{kind}" if module in low_rank else name
