"""One sequence over several processes: DeepSpeed's Ulysses around attention by document.

Each process of a group computes a part of the positions of every row; before attention all-to-all
exchanges give it the whole row for its share of the heads, and afterwards its positions for all heads
again (Jacobs et al., arXiv 2309.14509; ALST, arXiv 2506.13996). DeepSpeed wraps the attention function
that transformers calls (`UlyssesSPAttentionHF`), which is dualign's, so documents stay apart by their
segments. Held-out rows are computed without it, each by one process.

Shapes: T tokens of a row, S of a part.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_gather
from torch.utils.data import DataLoader
from transformers import Trainer

from dualign.attention.function import ATTENTION
from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.data.tokens.shards import ShardCollator
from dualign.errors import CheckpointError
from dualign.models.head import LabelScores


class SequenceParallel(Trainer):
    """A trainer whose `sequence_parts` processes share each row; it stands before TRL's among the bases.

    Data goes to groups of processes: each group is what a process is without it. transformers would
    give every process rows of its own, and exchange parts of them step by step (DeepSpeed's
    `UlyssesSPDataLoaderAdapter`); with that a run can't be resumed within an epoch, packed rows have no
    segments, and the loss is a mean of the means of micro-batches.
    """

    sequence_parts = 1
    data_collator: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = self.accelerator.parallelism_config
        self.sequence_parts = settings.sp_size if settings is not None else 1
        if self.sequence_parts > 1:
            _require_first_in_process()
            _require_reduce_scatter(self.accelerator.state.deepspeed_plugin)
            _join_deepspeed()
            # accelerate's own names are those of transformers' attention functions, which leak between documents.
            settings.sp_handler.sp_attn_implementation = ATTENTION

    @property
    def data_replicas(self) -> int:
        """How many rows are computed at once, by groups of processes."""
        return int(self.accelerator.num_processes) // self.sequence_parts

    @property
    def train_collator(self) -> Any:
        """What makes batches of rows, or this process' parts of them."""
        if self.sequence_parts == 1:
            return self.data_collator
        place = self.accelerator.process_index % self.sequence_parts
        return ShardCollator(collator=self.data_collator, place=place, parts=self.sequence_parts)

    def get_train_dataloader(self) -> DataLoader[Any]:
        whole = self.data_collator
        self.data_collator = self.train_collator
        try:
            return self.for_group(super().get_train_dataloader())
        finally:
            self.data_collator = whole

    def for_group(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """Let a loader that accelerate prepared give the processes of a group the same rows."""
        if self.sequence_parts > 1:
            sampler: Any = loader.batch_sampler  # accelerate's BatchSamplerShard
            sampler.num_processes = self.data_replicas
            sampler.process_index = self.accelerator.process_index // self.sequence_parts
        return loader

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> tuple[torch.nn.Module, Any]:
        """Return model and loader without DeepSpeed's adapter, which would exchange parts of rows."""
        model, loader = super()._prepare_for_training(*args, **kwargs)
        if self.sequence_parts > 1:
            loader = loader.dl
            self.callback_handler.train_dataloader = loader
        return model, loader

    def get_sp_size(self) -> int:
        """Return 1: batches are counted by `for_group`, which gives all processes of a group the same."""
        return 1

    def get_total_train_batch_size(self, args: Any) -> int:
        return int(super().get_total_train_batch_size(args)) // self.sequence_parts

    def labels_of_step(self, batches: Sequence[dict[str, Any]], device: torch.device) -> Tensor:
        """Return how many labels all processes have in the parts of rows of a step."""
        labels = [(batch["shift_labels"] != IGNORE_INDEX).sum() for batch in batches]
        total: Tensor = self.accelerator.reduce(torch.stack(labels).sum().to(device), "sum")
        return total

    def loss_of_parts(self, log_probs_1S: Tensor, items: Tensor | int) -> Tensor:
        """Return the loss of a micro-batch whose parts lie in the processes of its group.

        Its value is the mean over groups of - the sum of log_probs x groups / `items`, labels of the
        whole step; its gradient is that of this process' part. `training_step` divides by the
        micro-batches of the step.
        """
        scale = self.data_replicas * self.current_gradient_accumulation_steps
        share = -log_probs_1S.sum() * scale / items
        total = self.accelerator.reduce(share.detach(), reduction="sum") / self.data_replicas
        return self.for_engine(share + (total - share).detach())

    def for_engine(self, loss: Tensor) -> Tensor:
        """Return a loss whose gradients, once DeepSpeed has reduced them, are those of the loss.

        Gradients of parts are summed within a group and averaged over groups. So does ZeRO-1 and 2;
        ZeRO-3 averages over all processes (DeepSpeed 0.19.8, `reduce_scatter_coalesced`).
        """
        if self.sequence_parts == 1 or self.accelerator.state.deepspeed_plugin.zero_stage != 3:
            return loss
        more = (self.sequence_parts - 1) * loss
        return loss + (more - more.detach())


def _require_first_in_process() -> None:
    """Refuse a second stage in one process: DeepSpeed wraps attention, and makes its groups, once.

    Raises:
        CheckpointError: the groups are there already.
    """
    with suppress(AssertionError):
        _sequence_group()
        raise CheckpointError(
            "one sequence over several processes: a second stage can't start in the same processes; give each "
            "stage a launch of its own (launch: ulysses.yaml of the stage, or accelerate launch ... -m dualign sft)"
        )


def _require_reduce_scatter(plugin: Any) -> None:
    """Refuse a DeepSpeed config under which ZeRO-3 averages large tensors otherwise than small ones.

    Raises:
        CheckpointError: it says reduce_scatter: false.
    """
    if not plugin.hf_ds_config.get_value("zero_optimization.reduce_scatter", True):
        raise CheckpointError(
            "one sequence over several processes: reduce_scatter: false in DeepSpeed's config would average the "
            "gradients of tensors by their size: remove it"
        )


def _join_deepspeed() -> None:
    """Let DeepSpeed know the process group, which accelerate does on accelerators only."""
    import deepspeed

    deepspeed.init_distributed(auto_mpi_discovery=False)


def whole_scores(scores: LabelScores) -> LabelScores:
    """Return the figures of the whole row [1, T] in each process of a group, of parts [1, S].

    The gradient of log_probs is that of this process' part: all of them compute the same loss.
    """
    gather: Any = _Gathered.apply
    whole = {
        # One type: a figure of no labels has another one than that of some.
        field.name: gather(values.float())
        for field in fields(scores)
        if isinstance(values := getattr(scores, field.name), Tensor) and values.dim() == 2
    }
    return LabelScores(**whole | {"label_mask": whole["label_mask"] > 0})


class _Gathered(torch.autograd.Function):
    """Values [1, S] of the processes of a group -> [1, T]; the gradient is the process' own slice."""

    @staticmethod
    def forward(ctx: Any, values_1S: Tensor) -> Tensor:
        group = _sequence_group()
        ctx.place, ctx.tokens = torch.distributed.get_rank(group), values_1S.shape[1]
        parts = [
            torch.empty_like(values_1S) for _ in range(torch.distributed.get_world_size(group))
        ]
        all_gather(parts, values_1S.contiguous(), group=group)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient_1T: Tensor) -> Tensor:
        return gradient_1T[:, ctx.place * ctx.tokens : (ctx.place + 1) * ctx.tokens]


def _sequence_group() -> ProcessGroup:
    """Return the processes that share a row with this one."""
    from deepspeed.runtime.sequence_parallel import parallel_state_sp

    group: ProcessGroup = parallel_state_sp.get_sequence_parallel_group()
    return group
