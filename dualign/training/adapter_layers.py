"""What the names of an adapter's settings mean in a model: its layers, their ranks, the modules beside them.

PEFT skips a name that fits nothing, and a rank that no layer has; here each is said before the first step.

peft is imported where it is used: that takes more than a second.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dualign.checkpoints.patterns import configured, first_match, is_named
from dualign.config import nearest
from dualign.training.adapter import AdapterConfig, Issue

if TYPE_CHECKING:
    from peft import LoraConfig

_ALL = "all-linear"
_CONTAINERS = (torch.nn.ModuleList, torch.nn.ModuleDict)
_ADAPTED = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d)


def peft_config(adapter: AdapterConfig, model: Any) -> "LoraConfig":
    """Return a recipe's `lora:` as PEFT's config for a causal language model."""
    from peft import LoraConfig

    targets = adapter.target_modules
    excluded = adapter.exclude_modules
    routers = _routers(model) if targets == _ALL else []
    if targets == _ALL and adapter.layers_to_transform:
        targets = _linear_names(model)  # PEFT takes numbers of layers beside a list alone
    with warnings.catch_warnings():
        # Of rslora with patterns it says what holds where the start is written into the base.
        warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA")
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=adapter.r,
            lora_alpha=adapter.lora_alpha,
            lora_dropout=adapter.lora_dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            exclude_modules=_both(excluded, routers) or None,
            use_dora=adapter.use_dora,
            use_rslora=adapter.use_rslora,
            layers_to_transform=list(adapter.layers_to_transform) or None,
            rank_pattern=dict(adapter.rank_pattern),
            alpha_pattern=dict(adapter.alpha_pattern),
            modules_to_save=list(adapter.modules_to_save) or None,
            ensure_weight_tying=_saves_tied(adapter, model),
            init_lora_weights=adapter.init_lora_weights,
            bias=adapter.bias,
        )


def layer_issues(adapter: AdapterConfig, model: Any) -> list[Issue]:
    """Return what an adapter asks of a model that it doesn't have, as (key, message)."""
    modules = dict(model.named_modules())
    paths = [path for path, module in modules.items() if _takes_adapter(module)]
    issues = [*_unknown_layers(adapter, paths), *_unknown_numbers(adapter, model)]
    issues += _unknown_modules(adapter, model, modules)
    if issues:
        return issues
    targets = _target_paths(adapter, model, paths)
    if not targets:
        return [("target_modules", "no layer is left that gets an adapter")]
    issues += _unused_patterns(adapter, targets)
    issues += _starts(adapter, {path: modules[path] for path in targets})
    if adapter.bias != "none":
        trained = targets if adapter.bias == "lora_only" else list(modules)
        if all(getattr(modules[path], "bias", None) is None for path in trained):
            where = (
                "layers that get an adapter have" if adapter.bias == "lora_only" else "model has"
            )
            issues.append(("bias", f"the {where} no biases: remove it"))
    return issues


def _unknown_layers(adapter: AdapterConfig, paths: Sequence[str]) -> Iterator[Issue]:
    """Refuse names of layers that the model doesn't have: PEFT skips them, unless none is there."""
    names = sorted({path.rpartition(".")[2] for path in paths} - {"lm_head"})
    for key in ("target_modules", "exclude_modules"):
        value = getattr(adapter, key)
        if value == _ALL:
            continue
        is_expression = isinstance(value, str)
        for name in (value,) if is_expression else value:
            if not any(is_named(path, name if is_expression else (name,)) for path in paths):
                yield key, f"{name!r} names no layer of the model{nearest(name, names)}"


def _unknown_numbers(adapter: AdapterConfig, model: Any) -> Iterator[Issue]:
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if count and (beyond := [number for number in adapter.layers_to_transform if number >= count]):
        yield (
            "layers_to_transform",
            f"the model has layers 0 to {count - 1}, found {beyond[0]}",
        )


def _unknown_modules(
    adapter: AdapterConfig, model: Any, modules: Mapping[str, Any]
) -> Iterator[Issue]:
    """Refuse modules to save that aren't there, lie in each other, or are half of a tied pair."""
    key = "modules_to_save"
    saved: list[str] = []
    for name in adapter.modules_to_save:
        fits = [path for path in modules if path.endswith(name)]  # as PEFT does
        if not any(is_named(path, (name,)) for path in fits):
            names = sorted({path.rpartition(".")[2] for path in modules if path})
            yield key, f"{name!r} names no module of the model{nearest(name, names)}"
        elif any(isinstance(modules[path], _CONTAINERS) for path in fits):
            yield key, f"{name!r} is a list of modules: name what is in it"
        saved += fits
    for path in saved:
        if outer := next((other for other in saved if path.startswith(f"{other}.")), None):
            yield key, f"{path} is a part of {outer}: name one of the two"
    embedding, head = _ends(model)
    if _is_tied(model) and head in saved and embedding not in saved:
        yield (
            key,
            f"{head} is the embedding in this model: name {embedding.rpartition('.')[2]}, and both are trained "
            "as one tensor",
        )


def _target_paths(adapter: AdapterConfig, model: Any, paths: Sequence[str]) -> list[str]:
    """List the layers that PEFT gives an adapter."""
    from peft.tuners.tuners_utils import check_target_module_exists

    config = peft_config(replace(adapter, init_lora_weights=True), model)
    if config.target_modules == _ALL:
        linear = set(_linear_names(model))
        paths = [path for path in paths if path.rpartition(".")[2] in linear]
        config.target_modules = set(paths)
    return [path for path in paths if check_target_module_exists(config, path)]


def _unused_patterns(adapter: AdapterConfig, targets: Sequence[str]) -> Iterator[Issue]:
    for key in ("rank_pattern", "alpha_pattern"):
        patterns: Mapping[str, int] = getattr(adapter, key)
        used = {first_match(patterns, path) for path in targets}
        for name in patterns:
            if name in used:
                continue
            if any(first_match([name], path) for path in targets):
                yield key, f"{name!r} has no effect: entries before it fit the same layers"
            else:
                yield key, f"{name!r} fits no layer that gets an adapter"


def _starts(adapter: AdapterConfig, targets: Mapping[str, Any]) -> Iterator[Issue]:
    """Refuse a start that PEFT can't make of a layer: it takes the base's matrix apart."""
    if adapter.init_lora_weights in (True, "gaussian"):
        return
    ranks = {"r": adapter.r, "rank_pattern": adapter.rank_pattern}
    for path, module in targets.items():
        if not isinstance(module, torch.nn.Linear):
            yield (
                "init_lora_weights",
                f"{adapter.init_lora_weights} is for linear layers, and {path} is a {type(module).__name__}",
            )
            return
        rank, most = configured(ranks, "r", path), min(module.in_features, module.out_features)
        if rank > most:
            yield (
                "init_lora_weights",
                f"{adapter.init_lora_weights}: {path} has rank {most} at most, found {rank}",
            )
            return


def _both(excluded: str | Collection[str], routers: list[str]) -> str | list[str]:
    if not isinstance(excluded, str):
        return [*excluded, *routers]
    return "|".join([f"({excluded})", *(rf"(.*\.)?{name}" for name in routers)])


def _routers(model: Any) -> list[str]:
    """Return the names of Linear layers that return more than a product, as Llama 4's and Phi-MoE's
    routers do: an adapter can't be added to that.
    """
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and type(module).__name__.endswith("Router")
    }
    return sorted(names)


def _linear_names(model: Any) -> tuple[str, ...]:
    """Return the last parts of the paths of linear layers, without the head."""
    head = model.get_output_embeddings()
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
        and module is not head
    }
    return tuple(sorted(names))


def _takes_adapter(module: Any) -> bool:
    return isinstance(module, _ADAPTED) or type(module).__name__ == "Conv1D"


def _ends(model: Any) -> tuple[str, str]:
    """Return the paths of the embedding and of the head."""
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    paths = {id(module): path for path, module in model.named_modules()}
    return paths.get(id(ends[0]), ""), paths.get(id(ends[1]), "")


def _is_tied(model: Any) -> bool:
    return bool(model.config.tie_word_embeddings)


def _saves_tied(adapter: AdapterConfig, model: Any) -> bool:
    """Whether the embedding is trained as a whole, and is the head too: one copy for both, as PEFT has it."""
    if not adapter.modules_to_save or not _is_tied(model):
        return False
    return any(_ends(model)[0].endswith(name) for name in adapter.modules_to_save)
