"""Dimensions of a low-rank adapter: what it trains of a model, layer by layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dualign.checkpoints.patterns import configured, is_named
from dualign.cost.model_shape import ModelShape
from dualign.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraShape:
    """A low-rank adapter on linear modules of every layer, and what is trained beside it."""

    r: int
    modules: str | tuple[str, ...] = "all-linear"
    """all-linear, or names of modules"""
    dropout: float = 0.0
    dora: bool = False
    exclude: str | tuple[str, ...] = ()
    """names, or an expression for whole paths"""
    layers: tuple[int, ...] = ()
    """absent: all"""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    saved: tuple[str, ...] = ()
    """modules trained as a whole"""
    biases: bool = False
    frozen_start: bool = False
    """its start is kept beside it (PiSSA, OLoRA)"""

    def targets(self, shape: ModelShape) -> Mapping[str, tuple[int, int]]:
        """Return name -> (inputs, outputs) of the modules with an adapter, in one layer."""
        linears = shape.linears()
        if self.modules == "all-linear":
            return {name: size for name, size in linears.items() if name not in self.exclude}
        names: Sequence[str] = (self.modules,) if isinstance(self.modules, str) else self.modules
        unknown = [name for name in names if name not in linears]
        if unknown:
            raise ConfigError(
                f"target_modules {', '.join(unknown)}: the memory estimate knows all-linear and the names "
                f"{', '.join(linears)}; list them by name to get an estimate"
            )
        return {name: linears[name] for name in names if name not in self.exclude}

    def adapter_parameters(self, shape: ModelShape) -> int:
        """Count A (r x inputs), B (outputs x r) and, with DoRA, a magnitude per output."""
        ranks = {"r": self.r, "rank_pattern": self.rank_pattern}
        targets, count = self.targets(shape), 0
        for path in shape.layer_modules():
            name = path.rpartition(".")[2]
            if name in targets and not self._leaves_out(path):
                inputs, outputs = targets[name]
                count += configured(ranks, "r", path) * (inputs + outputs) + self.dora * outputs
        return count

    def parameters(self, shape: ModelShape) -> int:
        """Count what is trained: the adapter, whole modules, biases."""
        biases = self.biases * shape.layers * shape.layer_biases
        return self.adapter_parameters(shape) + sum(self._saved(shape)) + biases

    def trains_head(self, shape: ModelShape) -> bool:
        """Whether the head's matrix is trained: by its own name, or as the embedding."""
        names = ("lm_head", "model.embed_tokens") if shape.tied else ("lm_head",)
        return any(path.endswith(name) for path in names for name in self.saved)

    def _leaves_out(self, path: str) -> bool:
        if self.layers and _layer(path) not in self.layers:
            return True
        if isinstance(self.exclude, str):
            return is_named(path, self.exclude)
        return is_named(path, self.exclude) or any(_is_in(path, name) for name in self.saved)

    def _saved(self, shape: ModelShape) -> Iterator[int]:
        sizes = {**shape.layer_modules(), "model.norm": shape.hidden}
        sizes["model.embed_tokens"] = shape.embedding_parameters
        embedding = any("model.embed_tokens".endswith(name) for name in self.saved)
        sizes["lm_head"] = 0 if shape.tied and embedding else shape.embedding_parameters
        for name in self.saved:
            if not any(_is_in(path, name) for path in sizes):
                raise ConfigError(
                    f"modules_to_save {name}: the memory estimate doesn't know its size"
                )
        for path, size in sizes.items():
            if any(_is_in(path, name) for name in self.saved):
                yield size


def _layer(path: str) -> int:
    return int(path.split(".")[2])


def _is_in(path: str, name: str) -> bool:
    """Return whether a module, or one that holds it, ends with a name, as PEFT compares them."""
    parts = path.split(".")
    return any(".".join(parts[:end]).endswith(name) for end in range(1, len(parts) + 1))
