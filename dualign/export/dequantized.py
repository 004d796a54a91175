"""A GGUF file's numbers back in a transformers model, so that it is compared as other exports are.

They are what llama.cpp's weights are; its own rounding of activations isn't in them.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dualign.export.model_source import ExportSource
from dualign.export.tensors import GGUFTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dualign.models.loading import EvalModel


def dequantized(
    source: ExportSource, files: Iterable[tuple[str, Path]]
) -> "Iterator[tuple[str, EvalModel]]":
    """Yield (type, model) of each (type, file), in float32.

    It is one model whose numbers are replaced: use each before the next.
    """
    from dualign.models.loading import EvalModel, identity, load_model

    assert source.layout is not None, "quantized files are of architectures that dualign writes"
    model = load_model(source.model, dtype="float32")
    for type, file in files:
        dequantize_into(model, file, source.layout.tensors)
        yield (
            type,
            EvalModel(
                model=file.name,
                identity=f"{identity(source.model)} {file.name}",
                tokenizer=source.tokenizer,
                weights=lambda: model,
            ),
        )


def dequantize_into(model: "PreTrainedModel", file: Path, tensors: Iterable[GGUFTensor]) -> None:
    """Give a model the numbers of a GGUF file that was written from it."""
    import torch
    from gguf import GGUFReader, quants

    stored = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    parameters = dict(model.named_parameters())  # without a head that is the embedding
    unset = set(parameters) - {tensor.source for tensor in tensors}
    assert not unset, f"{file.name} lacks {min(unset)}"
    with torch.no_grad():
        for tensor in tensors:
            if tensor.source in parameters:
                packed = stored[tensor.name]
                values = quants.dequantize(packed.data, packed.tensor_type).reshape(tensor.shape)
                parameters[tensor.source].copy_(torch.tensor(tensor.restore(values)))
