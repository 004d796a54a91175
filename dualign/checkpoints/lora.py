"""Read a LoRA adapter folder as PEFT writes it, and apply it to a weight.

The folded weight is `W + s * B @ A` (LoRA, arXiv 2106.09685), with `s = alpha / r` or
`alpha / sqrt(r)` (rsLoRA, arXiv 2312.03732); DoRA (arXiv 2402.09353) rescales the result to the
learned magnitude.

Shapes: R rank, I in, O out, V vocabulary, D hidden.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.dtypes import Array
from dualign.checkpoints.exact_product import ExactProduct
from dualign.checkpoints.patterns import configured
from dualign.errors import CheckpointError, MergeError

PREFIX = "base_model.model."
_FACTORS = {
    "lora_A": "A",
    "lora_B": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "magnitude",
}
TOKENS = ".token_adapter.trainable_tokens_delta"
BASE_OF_TOKENS = ".token_adapter.base_layer."

# Each changes the base model, or the formula, in a way that isn't computed here.
_UNSUPPORTED = (
    "fan_in_fan_out", "lora_bias", "target_parameters", "layer_replication",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config",
    "monteclora_config", "megatron_config",
)  # fmt: skip
_NORM_ELEMENTS = 1 << 15  # elements at once
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


Rows = Callable[[int, int], Array]
"""(start, stop) -> the rows [start, stop) of a tensor, float64"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraModule:
    """The low-rank change of one module: `A_RI`, `B_OR`.

    For an embedding they are `A_RV`, `B_DR`, and the change is the transposed product.
    """

    A: Tensor
    B: Tensor
    scaling: float
    embedding: bool
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return int(self.A.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the changed weight."""
        product = (int(self.B.shape[0]), int(self.A.shape[1]))
        return product[::-1] if self.embedding else product

    def delta(self) -> Rows:
        """Return `s * B @ A` in the shape of the changed weight, any rows at a time, the same bits
        on any machine.
        """
        left, right = (self.A.T, self.B.T) if self.embedding else (self.B, self.A)
        scaled = self.scaling * to_float64(right)
        return ExactProduct(lambda start, stop: to_float64(left[start:stop]), scaled).rows

    def apply(self, weight: Rows) -> Rows:
        """Return the folded weight. DoRA on an embedding reads all rows for column norms first."""
        delta = self.delta()

        def added(start: int, stop: int) -> Array:
            rows = delta(start, stop)
            rows += weight(start, stop)
            return rows

        if self.magnitude is None:
            return added
        magnitude = to_float64(self.magnitude)
        if self.embedding:
            factor = magnitude.reshape(1, -1) / _column_norms(added, *self.shape)
            return lambda start, stop: added(start, stop) * factor

        def rescaled(start: int, stop: int) -> Array:
            rows = added(start, stop)
            rows *= magnitude.reshape(-1, 1)[start:stop] / np.linalg.norm(
                rows, axis=1, keepdims=True
            )
            return rows

        return rescaled


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """An adapter folder: its config, its low-rank modules by path, and its other tensors."""

    folder: Path
    file: Path
    config: Mapping[str, Any]
    modules: Mapping[str, LoraModule]
    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    """whole tensors by the base's names (modules_to_save, biases, embeddings saved along)"""
    token_rows: Mapping[str, tuple[tuple[int, ...], Tensor]] = field(default_factory=dict)
    """trainable tokens: rows of a weight, and their new values"""


def to_float64(tensor: Tensor) -> Array:
    """Copy a tensor to a float64 array."""
    return tensor.double().numpy()


def _column_norms(rows: Rows, count: int, columns: int) -> Array:
    step = max(_NORM_ELEMENTS // columns, 1)
    total = np.zeros(columns)
    for start in range(0, count, step):
        total += np.square(rows(start, min(start + step, count))).sum(axis=0)
    return np.sqrt(total)


def read_adapter(folder: Path) -> Adapter:
    """Read the adapter in `folder`; its tensors map the file.

    Raises:
        CheckpointError: a file is missing or broken.
        MergeError: the adapter does something that can't be folded into weights exactly.
    """
    config = read_json(folder / "adapter_config.json")
    _require_plain_lora(folder, config)
    file = folder / "adapter_model.safetensors"
    if not file.is_file() and (folder / "adapter_model.bin").is_file():
        raise CheckpointError(
            f"{folder}: adapter_model.bin is a pickle; save the adapter as safetensors"
        )
    return _adapter(folder, file, config, _read_all(file))


def _require_plain_lora(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise MergeError(
            f"{folder}: expected a LORA adapter, found peft_type {config.get('peft_type')!r}"
        )
    used = [key for key in _UNSUPPORTED if config.get(key)]
    if used:
        raise MergeError(
            f"{folder}: adapter_config.json has {used[0]}: {config[used[0]]!r}, which can't be "
            "folded exactly; train the adapter without it"
        )
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise MergeError(
            f"{folder}: init_lora_weights {start!r} changes the base model too, so base and "
            "adapter alone don't make the trained model; save it with PEFT's "
            "path_initial_model_for_weight_conversion"
        )


def _read_all(file: Path) -> dict[str, Tensor]:
    handle = _open(file)
    tensors = {name: handle.get_tensor(name) for name in sorted(handle.keys())}
    for name, tensor in tensors.items():
        if not name.startswith(PREFIX):
            raise MergeError(
                f"{file}: expected tensors named {PREFIX}..., found {name!r}; "
                "save the adapter with PEFT"
            )
        _require_finite(tensor, name, file)
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def _adapter(
    folder: Path, file: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Adapter:
    factors: dict[str, dict[str, Tensor]] = {}
    replaced, rows, embeddings = {}, {}, set()
    for name, tensor in tensors.items():
        module, _, kind = name.removesuffix(".weight").rpartition(".")
        if kind in _FACTORS:
            factors.setdefault(module, {})[_FACTORS[kind]] = tensor
            embeddings |= {module} if kind.startswith("lora_embedding") else set()
        elif name.endswith(TOKENS):
            module = name.removesuffix(TOKENS)
            rows[module + ".weight"] = (_token_indices(folder, config, module, tensor), tensor)
        elif BASE_OF_TOKENS in name:
            raise MergeError(
                f"{file}: {name} is the whole matrix of a base that was resized before training; save the "
                "resized base, and the adapter with save_embedding_layers=False"
            )
        elif "lora_" in name:
            raise MergeError(
                f"{file}: {name} isn't a tensor that a plain LoRA adapter has; it can't be folded"
            )
        else:
            replaced[name.replace(".base_layer.", ".")] = tensor
    modules = {
        path: _module(folder, config, path, parts, path in embeddings)
        for path, parts in factors.items()
    }
    conflicts = sorted(set(rows) & {*replaced, *(f"{path}.weight" for path in modules)})
    if conflicts:
        raise MergeError(
            f"{folder}: {conflicts[0]} is changed as a whole and by trainable tokens; use one of the two"
        )
    return Adapter(
        folder=folder, file=file, config=config, modules=modules, replaced=replaced, token_rows=rows
    )


def _module(
    folder: Path, config: Mapping[str, Any], path: str, parts: Mapping[str, Tensor], embedding: bool
) -> LoraModule:
    expected = {"A", "B", "magnitude"} if config.get("use_dora") else {"A", "B"}
    if set(parts) != expected:
        raise MergeError(
            f"{folder}: {path} has the LoRA tensors {sorted(parts)}; expected {sorted(expected)}"
        )
    rank = configured(config, "r", path)
    shapes = tuple(parts["A"].shape), tuple(parts["B"].shape)
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or {shapes[0][0], shapes[1][1]} != {rank}:
        raise MergeError(
            f"{folder}: {path} has factors of shapes {shapes}; expected rank {rank} in both, "
            "as configured"
        )
    scaling = configured(config, "lora_alpha", path) / (
        math.sqrt(rank) if config.get("use_rslora") else rank
    )
    return LoraModule(
        A=parts["A"],
        B=parts["B"],
        magnitude=parts.get("magnitude"),
        scaling=scaling,
        embedding=embedding,
    )


def _token_indices(
    folder: Path, config: Mapping[str, Any], module: str, delta: Tensor
) -> tuple[int, ...]:
    indices = config.get("trainable_token_indices") or []
    if isinstance(indices, Mapping):
        indices = next((value for key, value in indices.items() if module.endswith(key)), [])
    if len(indices) != len(delta):
        raise MergeError(
            f"{folder}: {module} has {len(delta)} trained token rows for {len(indices)} token indices"
        )
    return tuple(indices)


def _require_finite(tensor: Tensor, name: str, where: object) -> None:
    """Raise MergeError if the tensor holds a NaN or an infinity."""
    # A NaN or an infinity always spoils the sum: one pass, and no mask in memory.
    if bool(torch.isfinite(tensor.sum(dtype=torch.float32))):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise MergeError(
            f"{where}: {name} holds {bad} NaN or infinite values of {tensor.numel()}; "
            "it can't be used"
        )


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except SafetensorError as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({error}); fetch or write it again"
        ) from None
