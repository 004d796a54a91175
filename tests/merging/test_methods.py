"""The methods on tensors, against sums worked by hand and in float64."""

import pytest
import torch

from dualign.merging.methods import linear, normalized


def test_linear_is_the_weighted_sum() -> None:
    tensors = [torch.tensor([[1.0, -2.0]]), torch.tensor([[4.0, 8.0]])]
    assert linear(tensors, [0.5, 0.25]).tolist() == [[1.5, 1.0]]


def test_weights_are_normalised_in_float64() -> None:
    assert normalized([3, 1]) == [0.75, 0.25]
    assert sum(normalized([0.9, 0.1, 0.3])) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_alone_or_beside_weight_zero_comes_out_bit_for_bit(dtype: torch.dtype) -> None:
    tensor = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    other = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(linear([tensor], [1.0]).to(dtype), tensor)
    assert torch.equal(linear([tensor, other], [1.0, 0.0]).to(dtype), tensor)


def test_inputs_are_left_alone() -> None:
    tensors = [torch.ones(3), torch.ones(3)]
    linear(tensors, [0.9, 0.1])
    assert torch.equal(torch.stack(tensors), torch.ones(2, 3))


def test_a_sum_of_bfloat16_is_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1 << 16, generator=generator).bfloat16() for _ in range(3)]
    weights = [0.3, 0.3, 0.4]
    exact = sum(w * x.double() for w, x in zip(weights, tensors, strict=True)).bfloat16()  # type: ignore[union-attr]
    found = linear(tensors, weights).bfloat16()
    cancelled = exact.abs() < 1e-12  # 0.3 + 0.1 - 0.4: what is left there is the weights' own error
    assert ((found == exact) | cancelled).float().mean() >= 0.99999
    # Weights rounded to bfloat16 first, the trap: 0.3 -> 0.30078, so every value grows.
    trapped = sum(torch.tensor(w).bfloat16() * x for w, x in zip(weights, tensors, strict=True))
    assert (trapped == exact).float().mean() < 0.8
