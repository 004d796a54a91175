"""The LoRA layer of a CPU computes what PEFT's computes."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from dualign.training.low_rank import LowRankLinear


def policy(*, own: bool, bias: bool = True, **settings: Any) -> PeftModel:
    """A layer with a parent's adapter, frozen, and one in training."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=32, target_modules=["0"], **settings)
    if own:
        config._register_custom_module({nn.Linear: LowRankLinear})
    model = get_peft_model(nn.Sequential(nn.Linear(6, 5, bias=bias)), config)
    if not settings:
        model.add_adapter("parent", LoraConfig(r=3, lora_alpha=1, target_modules=["0"]))
        model.base_model.set_adapter(["default", "parent"])
        model.set_requires_grad("parent", requires_grad=False)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return model


def outcome(model: PeftModel, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of what is trained."""
    torch.manual_seed(2)
    output = model(x)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    inputs = [x, *trained] if x.requires_grad else trained
    return [output, *torch.autograd.grad(output.square().sum(), inputs)]


@pytest.mark.parametrize("leaf", [True, False], ids=["inside", "first layer"])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_pefts(*, bias: bool, leaf: bool) -> None:
    torch.manual_seed(3)
    x = torch.randn(2, 7, 6, requires_grad=leaf)
    ours, expected = (outcome(policy(own=own, bias=bias), x) for own in (True, False))
    assert len(ours) == 3 + leaf  # of the adapter in training alone
    assert "LowRankProduct" in str(ours[0].grad_fn.next_functions)
    # Entries near zero are sums of large ones, so tensors are compared whole.
    for tensor, other in zip(ours, expected, strict=True):
        assert (tensor - other).norm() < 1e-5 * other.norm()


def test_an_adapter_that_starts_at_zero_changes_no_bit() -> None:
    """So a preference loss starts at its value for equal models."""
    model, x = policy(own=True), torch.randn(7, 6)
    nn.init.zeros_(model.base_model.model[0].lora_B["default"].weight)
    start = model(x)
    model.base_model.set_adapter("parent")
    assert torch.equal(start, model(x))
    with model.disable_adapter():
        assert torch.equal(model(x), model.base_model.model[0].base_layer(x))


@pytest.mark.parametrize(
    "settings", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}], ids=str
)
def test_other_adapters_are_left_to_peft(settings: dict[str, Any]) -> None:
    x = torch.randn(7, 6, requires_grad=True)
    ours, expected = (outcome(policy(own=own, **settings), x) for own in (True, False))
    assert all(map(torch.equal, ours, expected))


def test_other_types_are_left_to_peft() -> None:
    model, x = policy(own=True), torch.randn(7, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
    assert model.to(torch.float64)(x.double()).dtype == torch.float64


def test_a_kind_of_linear_layer_computes_what_it_computes() -> None:
    class Halved(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 2

    config = LoraConfig(r=4, target_modules=["0"])
    config._register_custom_module({nn.Linear: LowRankLinear})
    base, x = Halved(6, 5), torch.randn(7, 6)
    expected = base(x)
    assert torch.equal(get_peft_model(nn.Sequential(base), config)(x), expected)
