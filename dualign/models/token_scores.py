"""Log-probabilities of labels under a language model's head, in tiles of tokens.

The logits of a tile are the largest tensor at any time. While the head is frozen, the gradient of
the hidden states is computed from the same tile, so logits are computed once:

    d log p(y) / d h = W[y] - sum_v p_v W[v]

A trained head needs the gradient of each log-probability first, so its tiles are computed again in
the backward pass.

Shapes: N tokens, R tokens of a tile, D features, V vocabulary.
"""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

Extra = Literal["entropy", "mean_logits", "is_top1", "log_sum_sq_probs"]

# Logits of a tile; on a CPU 64 MB, against which larger tiles gain nothing.
_TILE_ELEMENTS_CPU = 1 << 24
_TILE_ELEMENTS = 1 << 26
_FEWEST_ROWS, _MOST_ROWS = 64, 1024
_PART_ELEMENTS = 1 << 20  # of a product that is summed at once on a CPU: it stays in the cache


class LogitForm(NamedTuple):
    """How a model turns the head's products y into logits: softcap * tanh(scale * y / softcap)."""

    scale: float = 1.0
    softcap: float | None = None


class TokenScores(NamedTuple):
    """Figures of each label, [N]. Those that weren't asked for are None; only log_probs has a gradient."""

    log_probs: Tensor
    """log p(label)"""
    entropy: Tensor | None = None
    """- sum_v p_v log p_v"""
    mean_logits: Tensor | None = None
    """the mean of the logits over the vocabulary"""
    is_top1: Tensor | None = None
    """whether the label is the most likely token; of equals, the first"""
    log_sum_sq_probs: Tensor | None = None
    """log sum_v p_v^2"""


def score_labels(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    labels_N: Tensor,
    *,
    form: LogitForm,
    extras: Collection[Extra] = (),
) -> TokenScores:
    """Return the log-probability of each label under the head, and the figures in `extras`."""
    apply: Any = _LabelLogProbs.apply
    log_probs_N, *figures = apply(
        hidden_ND, weight_VD, bias_V, labels_N, form, tuple(extras), torch.is_grad_enabled()
    )
    return TokenScores(log_probs_N, **dict(zip(extras, figures, strict=True)))


def gathered_head(*parameters: Tensor | None) -> AbstractContextManager[Any]:
    """Gather the parameters from all ranks while the context is open, if ZeRO-3 has sharded them."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    context: AbstractContextManager[Any] = maybe_gather_lm_head_ctx(*parameters)
    return context


class _LabelLogProbs(torch.autograd.Function):
    """Arguments: those of `score_labels`, and whether gradients are recorded."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        form: LogitForm,
        extras: tuple[Extra, ...],
        records: bool,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.head_trains = records and any(ctx.needs_input_grad[1:3])
        ahead = records and ctx.needs_input_grad[0] and not ctx.head_trains
        head = _Head(weight_VD, bias_V, form, _compute_dtype(hidden_ND))
        log_probs_N = hidden_ND.new_empty(len(labels_N), dtype=torch.float32)
        log_totals_N = torch.empty_like(log_probs_N)
        slopes_ND = torch.empty_like(hidden_ND, dtype=torch.float32) if ahead else None
        figures: dict[Extra, list[Tensor]] = {name: [] for name in extras}
        keep = bool(extras or form.softcap)
        for rows in _tiles(len(labels_N), len(weight_VD), hidden_ND.device):
            labels_R = labels_N[rows]
            logits_RV = head.logits(hidden_ND[rows])
            tile = _Tile(logits_RV, labels_R, spare_RV=head.spare(logits_RV) if keep else None)
            log_probs_N[rows] = tile.log_probs_R
            log_totals_N[rows] = tile.log_totals_R
            for name in extras:
                figures[name].append(tile.figure(name))
            if slopes_ND is not None:
                slope_RV = tile.slope(torch.ones_like(tile.log_probs_R), form)
                slopes_ND[rows] = head.hidden_gradient(slope_RV)
        ctx.head = form, head.dtype
        if ctx.head_trains:
            ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N, log_totals_N)
        else:
            ctx.save_for_backward(slopes_ND)
            ctx.hidden_dtype = hidden_ND.dtype
        results = [
            torch.cat(figures[name]) if figures[name] else log_probs_N.new_empty(0)
            for name in extras
        ]
        ctx.mark_non_differentiable(*results)
        return log_probs_N, *results

    @staticmethod
    def backward(ctx: Any, gradient_N: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if gradient_N is None:
            return (None,) * 7
        if ctx.head_trains:
            return *_trained_head_gradients(ctx, gradient_N.float()), None, None, None, None
        (slopes_ND,) = ctx.saved_tensors
        hidden_gradient_ND = (slopes_ND * gradient_N[:, None]).to(ctx.hidden_dtype)
        return hidden_gradient_ND, None, None, None, None, None, None


def _trained_head_gradients(
    ctx: Any, gradient_N: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of hidden states, weight and bias."""
    hidden_ND, weight_VD, bias_V, labels_N, log_totals_N = ctx.saved_tensors
    form, dtype = ctx.head
    with gathered_head(weight_VD, bias_V):
        head = _Head(weight_VD, bias_V, form, dtype)
        of_hidden_ND = torch.empty_like(hidden_ND, dtype=torch.float32)
        of_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        of_bias_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        for rows in _tiles(len(labels_N), len(weight_VD), hidden_ND.device):
            logits_RV = head.logits(hidden_ND[rows])
            tile = _Tile(
                logits_RV,
                labels_N[rows],
                spare_RV=None if form.softcap is None else head.spare(logits_RV),
                log_totals_R=log_totals_N[rows],
            )
            slope_RV = tile.slope(gradient_N[rows], form)
            of_hidden_ND[rows] = head.hidden_gradient(slope_RV)
            head.add_weight_gradient(of_weight_VD, slope_RV, hidden_ND[rows])
            if of_bias_V is not None:
                of_bias_V += slope_RV.sum(dim=0)
        of_weight = of_weight_VD.to(weight_VD.dtype) if ctx.needs_input_grad[1] else None
        of_bias = None if of_bias_V is None else of_bias_V.to(bias_V.dtype)
    return of_hidden_ND.to(hidden_ND.dtype), of_weight, of_bias


class _Head:
    """The products with the head's matrix, computed in `dtype`.

    Each tile's logits lie where those of the tile before lay: on a CPU fresh memory of this size
    comes from the system page by page, which takes a fifth of the time of the product.
    """

    def __init__(
        self, weight_VD: Tensor, bias_V: Tensor | None, form: LogitForm, dtype: torch.dtype
    ) -> None:
        self.dtype = dtype
        self._form = form
        self._weight_VD = weight_VD.detach().to(dtype)
        self._bias_V = None if bias_V is None else bias_V.detach().to(dtype)
        self._places: dict[str, Tensor] = {}

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Return the logits [R, V] in float32; they overwrite those returned before."""
        hidden_RD = hidden_RD.detach().to(self.dtype)
        if self.dtype == torch.float32:
            logits_RV = self._place("logits", len(hidden_RD), hidden_RD)
            torch.mm(hidden_RD, self._weight_VD.T, out=logits_RV)
            if self._bias_V is not None:
                logits_RV.add_(self._bias_V)
        else:
            logits_RV = linear(hidden_RD, self._weight_VD, self._bias_V).float()
        if self._form.scale != 1.0:
            logits_RV.mul_(self._form.scale)
        if (softcap := self._form.softcap) is not None:
            logits_RV.div_(softcap).tanh_().mul_(softcap)
        return logits_RV

    def spare(self, logits_RV: Tensor) -> Tensor:
        """Return room for as many values; they overwrite those of the tile before."""
        return self._place("spare", len(logits_RV), logits_RV)

    def _place(self, name: str, rows: int, like: Tensor) -> Tensor:
        if name not in self._places or len(self._places[name]) < rows:
            shape = rows, len(self._weight_VD)
            self._places[name] = torch.empty(shape, dtype=torch.float32, device=like.device)
        return self._places[name][:rows]

    def hidden_gradient(self, slope_RV: Tensor) -> Tensor:
        """Return the gradient of the hidden states [R, D] for that of the products."""
        return _product(slope_RV.to(self.dtype), self._weight_VD)

    def add_weight_gradient(self, total_VD: Tensor, slope_RV: Tensor, hidden_RD: Tensor) -> None:
        """Add the gradient of the matrix for that of the products, in float32."""
        hidden_RD = hidden_RD.detach().to(self.dtype)
        if self.dtype == torch.float32:
            total_VD.addmm_(slope_RV.T, hidden_RD)
        else:
            total_VD += _product(slope_RV.to(self.dtype).T, hidden_RD)


class _Tile:
    """Log-probabilities of a tile's labels. Overwrites the logits [R, V].

    With `spare_RV` the weights lie there, and the logits stay, shifted.
    """

    def __init__(
        self,
        logits_RV: Tensor,
        labels_R: Tensor,
        *,
        spare_RV: Tensor | None,
        log_totals_R: Tensor | None = None,
    ) -> None:
        self._labels_R1 = labels_R[:, None]
        label_logits_R = logits_RV.gather(1, self._labels_R1)[:, 0]
        self._shift_R = logits_RV.amax(dim=1) if log_totals_R is None else log_totals_R
        self._shifted_RV = logits_RV.sub_(self._shift_R[:, None])
        self._weights_RV = torch.exp(
            self._shifted_RV, out=self._shifted_RV if spare_RV is None else spare_RV
        )
        self._totals_R = self._weights_RV.sum(dim=1)
        self.log_totals_R = self._shift_R + self._totals_R.log()
        self.log_probs_R = label_logits_R - self.log_totals_R

    def figure(self, name: Extra) -> Tensor:
        """Return a figure of each label, [R]."""
        if name == "is_top1":
            return self._shifted_RV.argmax(dim=1) == self._labels_R1[:, 0]
        if name == "mean_logits":
            return self._shifted_RV.mean(dim=1) + self._shift_R
        if name == "log_sum_sq_probs":
            return self._weights_RV.square().sum(dim=1).log() - 2 * self._totals_R.log()
        # Of shifted logits z and weights exp(z): log sum_v exp(z_v) - sum_v exp(z_v) z_v / the sum.
        rows, vocabulary = self._weights_RV.shape
        if self._weights_RV.is_cpu:
            rows = max(1, _PART_ELEMENTS // vocabulary)
        pairs = zip(
            *(torch.split(part, rows) for part in (self._weights_RV, self._shifted_RV)), strict=True
        )
        sums_R = torch.cat([(weights * shifted).sum(dim=1) for weights, shifted in pairs])
        return self._totals_R.log() - sums_R / self._totals_R

    def slope(self, gradient_R: Tensor, form: LogitForm) -> Tensor:
        """Return the gradient of the head's products [R, V] for that of the log-probabilities.

        With p the softmax and z the logits: scale * (1 - (z / softcap)^2) * gradient * (onehot - p).
        The weights become the result, and the logits are overwritten: call it once, last.
        """
        slope_RV = self._weights_RV.mul_((-gradient_R / self._totals_R)[:, None])
        slope_RV.scatter_add_(1, self._labels_R1, gradient_R[:, None])
        if form.softcap is not None:
            logits_RV = self._shifted_RV.add_(self._shift_R[:, None])
            slope_RV.mul_(1 - logits_RV.div_(form.softcap).square_())
        return slope_RV.mul_(form.scale) if form.scale != 1.0 else slope_RV


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return a matrix product in float32, not rounded to 16 bits on the way where that is to be had."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right).float()


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _tiles(tokens: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    elements = _TILE_ELEMENTS_CPU if device.type == "cpu" else _TILE_ELEMENTS
    rows = min(max(elements // vocabulary, _FEWEST_ROWS), _MOST_ROWS)
    for start in range(0, tokens, rows):
        yield slice(start, min(start + rows, tokens))
