"""mergekit's arithmetic, against torch's own operations in the same order."""

import pytest
import torch

from dualign.merging.methods import compat
from dualign.merging.methods.tensors import in_memory, materialize

WEIGHTS = [0.5, 0.3, 0.4]


def inputs(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(64, 100, generator=generator).bfloat16() for _ in range(count)]


def merged(method: str, tensors: list[torch.Tensor], base: torch.Tensor | None, **parameters):
    arrays = [tensor.float().numpy() for tensor in tensors]
    group = in_memory(arrays, None if base is None else base.float().numpy(), block=700)
    combine = compat.FUNCTIONS[method](group, compat.rounding("BF16"), **parameters)
    return torch.from_numpy(materialize(combine, (64, 100), block=700)).bfloat16()


@pytest.mark.parametrize("normalize", [True, False])
def test_linear_is_torchs_addcmul_in_float32(normalize: bool) -> None:
    tensors = inputs(3)
    weights = torch.tensor(WEIGHTS)
    expected = torch.zeros(64, 100)
    for tensor, weight in zip(tensors, weights, strict=True):
        expected.addcmul_(tensor, weight)
    if normalize:
        expected /= weights.sum()
    found = merged("linear", tensors, None, weight=WEIGHTS, normalize=normalize)
    assert torch.equal(found, expected.bfloat16())


@pytest.mark.parametrize(("normalize", "scale"), [(False, 1.0), (True, 0.7)])
def test_task_arithmetic_rounds_every_step_to_bfloat16(normalize: bool, scale: float) -> None:
    base, *tensors = inputs(4)
    weights = torch.tensor(WEIGHTS).bfloat16()
    changes = torch.stack([tensor - base for tensor in tensors]) * weights[:, None, None]
    total = changes.sum(dim=0)
    if normalize:
        total = total / weights.sum()
    if scale != 1:
        total = total * scale
    found = merged(
        "task_arithmetic", tensors, base, weight=WEIGHTS, normalize=normalize, scale=scale
    )
    assert torch.equal(found, base + total)


@pytest.mark.parametrize("apart", [1.0, 1e-4])
def test_slerp_is_torchs_float32_in_chunks_of_a_million(apart: float) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, 1 << 19, generator=generator).bfloat16()
    other = (base + apart * torch.randn(3, 1 << 19, generator=generator)).bfloat16()
    a, b = (item.float().reshape(1, -1).split(1 << 20, dim=1) for item in (base, other))
    lengths = [torch.stack([part.norm(dim=1) for part in parts]).norm(dim=0) for parts in (a, b)]
    products = [(x / lengths[0] * (y / lengths[1])).sum(1) for x, y in zip(a, b, strict=True)]
    cosine = torch.stack(products).sum(0)
    theta = torch.acos(cosine)
    t = torch.tensor(0.3)
    first, second = torch.sin((1 - t) * theta) / theta.sin(), torch.sin(t * theta) / theta.sin()
    if apart < 1:
        first, second = 1 - t, t
    expected = (first * base.float() + second * other.float()).bfloat16()
    arrays = [item.float().numpy() for item in (other, base)]
    group = in_memory(arrays[:1], arrays[1], block=700)
    combine = compat.FUNCTIONS["slerp"](group, compat.rounding("BF16"), t=0.3)
    assert torch.equal(torch.from_numpy(materialize(combine, base.shape)).bfloat16(), expected)
