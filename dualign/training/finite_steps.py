"""Stop at the first step whose loss or gradient isn't finite, before it reaches the weights.

Trained on, a NaN spreads to every weight within a step, and the run ends hours later with nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from dualign.data.tokens.shards import WHOLE
from dualign.errors import TrainingError, excerpt

_SHOWN_DOCUMENTS = 4
_SHOWN_CHARACTERS = 160


class FiniteSteps(Trainer):
    """A trainer that refuses a step; it stands before TRL's among the bases.

    Ranks stop together: a NaN of one rank is in the norm of the gradients of all.
    """

    groups: Sequence[tuple[str, str]] = ()
    """the (mode, source) names that `group_ids` of a batch index"""

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        self._parts = [*getattr(self, "_parts", []), (loss, inputs)]
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Return the norm of the gradients; it is asked for once for each step, before the optimizer's."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        parts, self._parts = self._parts, []
        losses = torch.stack([loss.detach().float().reshape(()) for loss, _ in parts]).tolist()
        scaled = (
            self.accelerator.mixed_precision == "fp16"
        )  # its scaler skips such a step by design
        finite = norm is None or scaled or math.isfinite(float(norm))
        if not (finite and all(map(math.isfinite, losses))):
            raise TrainingError(self._refusal(losses, norm, [inputs for _, inputs in parts]))
        return norm

    def _refusal(
        self, losses: Sequence[float], norm: Any, batches: Sequence[Mapping[str, Any]]
    ) -> str:
        shown = ", ".join(f"{loss:.4g}" for loss in losses)
        figures = f"loss {shown}" + ("" if norm is None else f", gradient norm {float(norm):.4g}")
        documents = [text for inputs in batches for text in self._documents(inputs)]
        rows = "\n".join(f"    {text}" for text in documents[:_SHOWN_DOCUMENTS])
        rest = len(documents) - _SHOWN_DOCUMENTS
        checkpoints = sorted(Path(self.args.output_dir).glob("checkpoint-*"), key=_number)
        kept = f"{checkpoints[-1]} stays" if checkpoints else "no checkpoint was written yet"
        return (
            f"step {self.state.global_step + 1} of {self.state.max_steps}: not a number, or infinite: {figures}\n"
            f"  it was not applied; {kept}\n"
            f"  {self._blame()}\n"
            f"  rows of this step:\n{rows}" + (f"\n    and {rest} more" if rest > 0 else "")
        )

    def _blame(self) -> str:
        """Return what to try, by whether the weights are broken or only this step is."""
        broken = [name for name, p in self.model.named_parameters() if not p.isfinite().all()]
        if broken and self.state.global_step == 0:
            return f"the model that it starts from holds such values itself: {broken[0]}"
        rate = f"train.learning_rate (now {self.args.learning_rate:g})"
        after = f"; {len(broken)} tensors hold such values since the step before" if broken else ""
        return (
            f"try a lower {rate}, more train.warmup_steps, train.max_grad_norm: 1.0, bf16 instead of fp16, "
            f"or leave out the rows below{after}"
        )

    def _documents(self, inputs: Mapping[str, Any]) -> Iterator[str]:
        """Yield mode, source and text of each document of a batch."""
        for ids, group in self.group_documents(inputs.get(WHOLE, inputs)):
            text = self.processing_class.decode(ids.tolist())
            yield f"{' '.join(self.groups[group])}: {excerpt(text, _SHOWN_CHARACTERS)}"

    def group_documents(self, inputs: Mapping[str, Any]) -> Iterator[tuple[Tensor, int]]:
        """Yield the ids and the group of each document of a flat batch."""
        starts = (inputs["position_ids"][0] == 0).nonzero()[:, 0].tolist()
        stops = [*starts[1:], inputs["input_ids"].shape[1]]
        groups = inputs["group_ids"][0, starts].tolist()
        for start, stop, group in zip(starts, stops, groups, strict=True):
            yield inputs["input_ids"][0, start:stop], group


def _number(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
