"""Importance matrices: how much each input column of a tensor matters, measured on rows of both modes.

For a linear layer y = W x, an error d of the weights changes y by d x; if columns are taken as
independent, its square is sum_j d_j^2 E[x_j^2]. So the mean square of each column is its weight
when rows are quantized, as in llama.cpp's llama-imatrix, whose file format (GGUF) this reads and
writes. As there, only tensors of blocks are measured: the output matrix has six bits at least.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dualign.checkpoints.dtypes import Array
from dualign.errors import CheckpointError
from dualign.hashing import sha256
from dualign.terminal import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dualign.export.writer import GGUFLayout

_SUMS, _COUNTS = ".in_sum2", ".counts"
_KIND = "imatrix"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportanceConfig:
    """Where the importance matrix comes from."""

    file: str | None = None
    """llama-imatrix's; None: it is measured"""
    calibration: str | None = None
    """a file of rows of both modes; None: those of the SFT stage that the model comes from"""
    rows: int = 128
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """Sums over the tokens of some rows."""

    sums: Mapping[str, Array]
    """GGUF name of a tensor -> sums of squares of its input columns, float32 [width]"""
    tokens: Mapping[str, int]
    """GGUF name -> tokens that were summed"""
    datasets: tuple[str, ...]
    """where the rows are from"""
    rows: int

    def columns(self, name: str) -> Array | None:
        """Return the mean square of each input column of a tensor; None if it wasn't measured."""
        if not self.tokens.get(name):
            return None
        columns: Array = self.sums[name] / np.float32(self.tokens[name])
        return columns


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportanceFile:
    """An importance matrix and the file that it stands in."""

    importance: Importance
    file: Path
    record: Mapping[str, Any]
    """the account for export.json: rows and tokens by mode"""

    def settings(self) -> dict[str, str | int]:
        """Return what llama-quantize writes into a file about the matrix it used."""
        return {
            "quantize.imatrix.file": self.file.name,
            "quantize.imatrix.dataset": ", ".join(self.importance.datasets),
            "quantize.imatrix.entries_count": len(self.importance.sums),
            "quantize.imatrix.chunks_count": self.importance.rows,
        }


def make_importance(
    model: str, layout: "GGUFLayout", config: ImportanceConfig, out: Path
) -> ImportanceFile:
    """Measure the importance matrix of a model, or take a file's, and leave it in `out`.

    Raises:
        DualignError: there are no rows, or the file isn't a matrix of this model.
    """
    architecture = layout.architecture.name
    if config.file is not None:
        shapes = {tensor.name: tensor.shape for tensor in layout.tensors}
        importance = read_importance(Path(config.file), shapes)
        account: dict[str, Any] = {"from": ", ".join(importance.datasets)}
    else:
        from dualign.export.calibration import calibration
        from dualign.models.loading import load_model

        rows = calibration(model, config.calibration, rows=config.rows, seed=config.seed)
        weights = load_model(model, dtype="float32")
        importance = measure(weights, [row.ids for row in rows.rows], architecture, rows.origin)
        account = rows.record()
    write_importance(out, importance, architecture)
    record = {"file": out.name, "sha256": sha256(out), "tensors": len(importance.sums), **account}
    return ImportanceFile(importance=importance, file=out, record=record)


def measure(
    model: "PreTrainedModel", rows: Sequence[Sequence[int]], architecture: str, origin: str
) -> Importance:
    """Run rows of token ids through the model, one by one, and sum the squares of all inputs.

    Args:
        architecture: llama.cpp's name of it, which names the tensors.
    """
    import torch

    layers = _layers(model, architecture)
    sums = {name: torch.zeros(layer.in_features, dtype=torch.float64) for name, layer in layers}

    def hook(name: str) -> Any:
        def add(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            sums[name] += inputs[0].flatten(0, -2).double().square().sum(0).cpu()

        return add

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers]
    try:
        with (
            torch.inference_mode(),
            progress(len(rows), "importance of columns", unit="row") as bar,
        ):
            for row in rows:
                ids = torch.tensor([list(row)], device=model.device)
                model(input_ids=ids, use_cache=False, logits_to_keep=1)
                bar.update(1)
    finally:
        for handle in handles:
            handle.remove()
    tokens = sum(map(len, rows))
    return Importance(
        sums={name: total.float().numpy() for name, total in sums.items()},
        tokens=dict.fromkeys(sums, tokens),
        datasets=(origin,),
        rows=len(rows),
    )


def write_importance(file: Path, importance: Importance, architecture: str) -> None:
    """Write an importance matrix as llama-imatrix does."""
    from gguf import GGUFWriter

    writer = GGUFWriter(str(file), architecture)
    writer.add_type(_KIND)
    writer.add_array("imatrix.datasets", list(importance.datasets))
    writer.add_uint32("imatrix.chunk_count", importance.rows)
    tokens = max(importance.tokens.values(), default=0)
    writer.add_uint32("imatrix.chunk_size", max(tokens // max(importance.rows, 1), 1))
    for name, sums in importance.sums.items():
        writer.add_tensor(name + _SUMS, sums[None])
        writer.add_tensor(name + _COUNTS, np.array([[importance.tokens[name]]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_importance(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> Importance:
    """Read llama-imatrix's file for a model with these tensors.

    Raises:
        CheckpointError: it isn't one, or it was made of another model.
    """
    from gguf import GGUFReader

    if not file.is_file():
        raise CheckpointError(f"--imatrix {file}: there is no such file")
    try:
        reader = GGUFReader(file)
    except (ValueError, IndexError) as error:
        raise CheckpointError(
            f"--imatrix {file}: expected a GGUF file of llama-imatrix; an old one (.dat) becomes that "
            f"by `llama-imatrix --in-file {file} -o imatrix.gguf` ({error})"
        ) from None
    kind = reader.get_field("general.type")
    if kind is None or kind.contents() != _KIND:
        raise CheckpointError(
            f"--imatrix {file}: general.type is {kind and kind.contents()!r}, expected {_KIND!r}"
        )
    stored = {tensor.name: np.array(tensor.data, np.float32).ravel() for tensor in reader.tensors}
    sums = {name.removesuffix(_SUMS): data for name, data in stored.items() if name.endswith(_SUMS)}
    tokens = {name: int(stored.get(name + _COUNTS, np.zeros(1))[0]) for name in sums}
    _require_of_model(file, sums, shapes)
    datasets, chunks = (reader.get_field(f"imatrix.{key}") for key in ("datasets", "chunk_count"))
    return Importance(
        sums=sums,
        tokens=tokens,
        datasets=tuple(datasets.contents()) if datasets else (),
        rows=int(chunks.contents()) if chunks else 0,
    )


def _layers(model: "PreTrainedModel", architecture: str) -> list[tuple[str, Any]]:
    """Return the linear layers of blocks by their GGUF names."""
    import gguf
    import torch

    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    layers = []
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            name = names.get_name(f"{path}.weight", try_suffixes=(".weight",))
            if name is not None and name.startswith("blk."):
                layers.append((name, module))
    return layers


def _require_of_model(
    file: Path, sums: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    expected = {
        name: shape[1] for name, shape in shapes.items() if len(shape) == 2 and name[:4] == "blk."
    }
    if missing := sorted(set(expected) - set(sums)):
        raise CheckpointError(
            f"--imatrix {file}: {missing[0]} is missing ({len(missing)} of {len(expected)} tensors); "
            "expected a matrix of this model"
        )
    for name, width in expected.items():
        if sums[name].size != width:
            raise CheckpointError(
                f"--imatrix {file}: {name} has {sums[name].size} columns, the model {width}; expected a "
                "matrix of this model"
            )
        if not np.isfinite(sums[name]).all():
            raise CheckpointError(f"--imatrix {file}: {name} has values that aren't finite")
