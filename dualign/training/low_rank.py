"""LoRA on a frozen linear layer in float32, with nothing but matrix products.

PEFT computes W x, B A x, its scaled copy, and the sum of the two, and as many tensors of that size
on the way back. On a CPU these passes through memory took 7 % of a training step.

Shapes: T tokens, I features in, O features out, R rank.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.autograd.function import once_differentiable


class LowRankLinear(Linear):
    """PEFT's layer. It computes as PEFT does where an adapter isn't plain, or types differ."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return W x + b + the sum over active adapters of scale * B A x, [..., O]."""
        adapters = [name for name in self.active_adapters if name in self.lora_A]
        off = self.disable_adapters or self.merged or not adapters
        if args or kwargs or off or not self._is_plain(x, adapters):
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        base: Any = self.get_base_layer()
        factors = [
            factor.weight for name in adapters for factor in (self.lora_A[name], self.lora_B[name])
        ]
        apply: Any = _LowRankProduct.apply
        scales = [self.scaling[name] for name in adapters]
        output_TO = apply(x.flatten(0, -2), base.weight, base.bias, scales, *factors)
        return output_TO.unflatten(0, x.shape[:-1])  # type: ignore[no-any-return]

    def _is_plain(self, x: Tensor, adapters: Sequence[str]) -> bool:
        base = self.get_base_layer()
        frozen = not any(p.requires_grad for p in base.parameters())
        modules = [base, *(part[name] for name in adapters for part in (self.lora_A, self.lora_B))]
        return (
            type(base) is torch.nn.Linear  # a subclass may compute something else
            and frozen
            and x.dtype == torch.float32
            and x.dim() > 1
            and not torch.is_autocast_enabled(x.device.type)
            and not torch.compiler.is_compiling()
            and all(module.weight.dtype == torch.float32 for module in modules)
            and not any(self._is_special(name) for name in adapters)
        )

    def _is_special(self, name: str) -> bool:
        dropout = self.training and getattr(self.lora_dropout[name], "p", 0.0) > 0
        return bool(dropout or name in self.lora_variant or self.lora_bias[name])


class _LowRankProduct(torch.autograd.Function):
    """Arguments: x [T, I], W [O, I], b [O] or None, a scale for each adapter, A [R, I] and B [O, R]
    of the first adapter, of the second, ...
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        scales: Sequence[float],
        *factors: Tensor,
    ) -> Tensor:
        output_TO = torch.nn.functional.linear(x_TI, weight_OI, bias_O)
        kept = []
        for scale, a_RI, b_OR in zip(scales, factors[::2], factors[1::2], strict=True):
            low_TR = x_TI @ a_RI.T
            output_TO.addmm_(low_TR, b_OR.T, alpha=scale)
            kept += [a_RI, b_OR, low_TR]
        ctx.scales = scales
        ctx.save_for_backward(x_TI, weight_OI, *kept)
        return output_TO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight_OI, *kept = ctx.saved_tensors
        of_x_TI = gradient_TO @ weight_OI if ctx.needs_input_grad[0] else None
        of_factors: list[Tensor | None] = []
        for i, scale in enumerate(ctx.scales):
            a_RI, b_OR, low_TR = kept[3 * i : 3 * i + 3]
            of_low_TR = (gradient_TO @ b_OR).mul_(scale)
            if of_x_TI is not None:
                of_x_TI.addmm_(of_low_TR, a_RI)
            of_a, of_b = ctx.needs_input_grad[4 + 2 * i : 6 + 2 * i]
            of_factors.append(of_low_TR.T @ x_TI if of_a else None)
            of_factors.append((gradient_TO.T @ low_TR).mul_(scale) if of_b else None)
        return of_x_TI, None, None, None, *of_factors
