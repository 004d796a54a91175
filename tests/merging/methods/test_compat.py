"""mergekit's arithmetic, against torch's own operations in the same order."""

import numpy as np
import pytest
import torch

from dualign.merging.methods import compat
from dualign.merging.methods.tensors import in_memory, whole

WEIGHTS = [0.5, 0.3, 0.4]


def inputs(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(64, 100, generator=generator).bfloat16() for _ in range(count)]


def merged(method: str, tensors: list[torch.Tensor], base: torch.Tensor | None, **parameters):
    arrays = [one.float().numpy() for one in tensors]
    group = in_memory(arrays, None if base is None else base.float().numpy(), block=700)
    combine = compat.FUNCTIONS[method](group, compat.rounding("BF16"), **parameters)
    return torch.from_numpy(whole(combine, (64, 100), block=700)).bfloat16()


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
    changes = torch.stack([one - base for one in tensors]) * weights[:, None, None]
    total = changes.sum(dim=0)
    if normalize:
        total = total / weights.sum()
    if scale != 1:
        total = total * scale
    found = merged(
        "task_arithmetic", tensors, base, weight=WEIGHTS, normalize=normalize, scale=scale
    )
    assert torch.equal(found, base + total)


def test_slerp_is_within_a_step_of_float32() -> None:
    base, tensor = inputs(2)
    a, b = base.float(), tensor.float()
    theta = torch.acos((a / a.norm() * (b / b.norm())).sum())
    expected = (torch.sin(0.7 * theta) * a + torch.sin(0.3 * theta) * b) / torch.sin(theta)
    found = merged("slerp", [tensor], base, t=0.3)
    apart = (found.view(torch.int16).int() - expected.bfloat16().view(torch.int16).int()).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() < 1e-3
    np.testing.assert_allclose(found.float(), expected, rtol=2**-8)
