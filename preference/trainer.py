"""TRL's DPOTrainer with a step of our own: pairs that share their prompt, losses as functions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from trl import DPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from dualign.data.tokens.shards import WHOLE
from dualign.models.head import LabelScores, add_label_scores, without_adapters
from dualign.models.pairs import (
    MODEL_INPUTS,
    answer_sums,
    chosen_documents,
    label_values,
    pair_sizes,
)
from dualign.models.token_scores import Extra
from dualign.preference.batches import EpochOrder, TokenBatches
from dualign.preference.losses.scores import (
    PairScores,
    Scores,
    preference_loss,
    rewards,
    token_weights,
)
from dualign.preference.losses.settings import LossSettings
from dualign.preference.losses.table import needs_reference
from dualign.preference.start_margins import StartMargins
from dualign.training.checkpointing import SavesCheckpoints
from dualign.training.finite_steps import FiniteSteps
from dualign.training.pausing import EndsAtLastStep
from dualign.training.per_group_metrics import PerGroupMetrics
from dualign.training.policy import reference_in_force
from dualign.training.sequence_parallel import SequenceParallel, whole_scores

# What is only logged: computed in steps that are.
_LOGGED: tuple[Extra, ...] = ("entropy", "mean_logits", "is_top1")


class DualModeDPOTrainer(
    FiniteSteps, EndsAtLastStep, SavesCheckpoints, SequenceParallel, DPOTrainer
):
    """Makes model and reference as DPOTrainer does, and computes what it computes, from the batches
    of `PairCollator`; `groups` are the (mode, source) names that `group_ids` index.

    If the model has an adapter of the stage before, that adapter alone is the reference: the policy
    before its first step.

    Shapes: P pairs, N labels of all their answers.
    """

    def __init__(
        self,
        *args: Any,
        groups: Sequence[tuple[str, str]],
        losses: LossSettings,
        batch_tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.groups = groups
        self._losses = losses
        self._means = PerGroupMetrics(groups, overall=True)
        self._tokens = 0
        names = [name for name, _ in losses.losses]
        self._has_reference = needs_reference(names)
        self._loss_names = names
        self._start_margins = StartMargins(names)
        self._scoring: set[int] = set()
        super().__init__(*args, **kwargs)
        # Before accelerate wraps the forward in autocast, which the head's would else go around.
        self._add_label_scores(self.model)
        self._batches = batch_tokens and self._token_batches(batch_tokens)
        if self._batches:
            self.add_callback(EpochOrder(self._batches))

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        """Return the rows: they are tokenized, and DPOTrainer has no switch that says so."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any) -> Dataset:
        """Return the rows as they are if no loss compares with a reference.

        Random numbers go on as if the figures had been found in the cache: their loader draws one.
        """
        if not self._has_reference:
            return dataset
        state = torch.get_rng_state()
        dataset = super()._precompute_ref_logps(dataset, *args)
        torch.set_rng_state(state)
        return dataset

    def _token_batches(self, most_tokens: int) -> TokenBatches:
        collator = self.data_collator
        sizes = pair_sizes(
            self.train_dataset, collator.layout, most=most_tokens, answers=collator.answers
        )
        ranks = self.data_replicas
        return TokenBatches(sizes, most_tokens, ranks=ranks, seed=self.args.data_seed)

    def get_train_dataloader(self) -> DataLoader[Any]:
        if not self._batches:
            return super().get_train_dataloader()
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self._batches,
            collate_fn=self.train_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return self.for_group(self.accelerator.prepare(loader))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """Return the batches of a step, and with `batch_tokens` how many pairs all ranks have in it."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not self._batches:
            return batches, None
        pairs = torch.tensor(sum(len(batch["prompt_lengths"]) for batch in batches), device=device)
        return batches, self.accelerator.reduce(pairs, reduction="sum") // self.sequence_parts

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        router = {"output_router_logits": True} if self.aux_loss_enabled else {}
        output = self._score(model, inputs, self._extras(), **router)
        scores = self._scores_of(output, inputs, self._reference_logps(model, inputs))
        loss = self._mean(preference_loss(scores, self._losses), num_items_in_batch)
        self._add_metrics(scores, output, inputs)
        if output.aux_loss is not None:
            loss = loss + self.router_aux_loss_coef * output.aux_loss
            self._add("aux_loss", output.aux_loss)
        loss = self.for_engine(loss) if WHOLE in inputs else loss
        return (loss, output) if return_outputs else loss

    def _mean(self, loss_P: Tensor, pairs: Tensor | int | None) -> Tensor:
        """Return the mean over the pairs of the batch, or its share of the mean over a step's `pairs`."""
        if pairs is None:
            return loss_P.mean()
        # The loss is divided by the batches of the step, and gradients by the ranks, or groups of them.
        parts = self.current_gradient_accumulation_steps * self.data_replicas
        share: Tensor = loss_P.sum() * parts / pairs
        return share

    def compute_ref_log_probs(
        self, model: torch.nn.Module, inputs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Return the reference's log-probabilities of chosen and rejected, [P] each."""
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            self._reference_in_force(),
            self.accelerator.autocast(),
        ):
            output = self._score(model if self.ref_model is None else self.ref_model, inputs)
        return self._answer_logps(output, inputs)

    def _reference_logps(
        self, model: torch.nn.Module, inputs: dict[str, Any]
    ) -> tuple[Tensor | None, Tensor | None]:
        if not self._has_reference:
            return None, None
        if "ref_chosen_logps" in inputs:
            device = self.accelerator.device
            chosen_P, rejected_P = (
                torch.tensor(inputs[f"ref_{side}_logps"], device=device)
                for side in ("chosen", "rejected")
            )
            return chosen_P, rejected_P
        return self.compute_ref_log_probs(model, inputs)

    @torch.no_grad()
    def start_margins(self, pairs: Iterable[Mapping[str, Any]]) -> Iterator[float]:
        """Yield the margin of each pair in nats by token, under the model as it stands."""
        self.model.eval()
        for pair in pairs:
            inputs = self._prepare_inputs(self.data_collator([pair]))
            with self.accelerator.autocast():
                output = self._score(self.model, inputs)
            chosen_P, rejected_P = answer_sums(label_values(output), inputs)
            chosen_tokens_P, rejected_tokens_P = _token_counts(inputs, chosen_P.device)
            yield float(chosen_P / chosen_tokens_P - rejected_P / rejected_tokens_P)

    def _reference_in_force(self) -> AbstractContextManager[None]:
        policy = self.accelerator.unwrap_model(self.model)
        if self.ref_model is not None or not isinstance(policy, PeftModel):
            return nullcontext()
        return reference_in_force(policy)

    def _score(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, Any],
        extras: Sequence[Extra] = (),
        **options: Any,
    ) -> LabelScores:
        # Also for models that DPOTrainer makes, and uses, before its __init__ returns.
        self._add_label_scores(model)
        arguments = {name: inputs[name] for name in MODEL_INPUTS if name in inputs}
        output: LabelScores = model(**arguments, fused_lm_head=True, extras=extras, **options)
        return whole_scores(output) if WHOLE in inputs else output

    def _add_label_scores(self, model: torch.nn.Module) -> None:
        unwrapped = self.accelerator.unwrap_model(model)
        if id(unwrapped) not in self._scoring:
            add_label_scores(without_adapters(unwrapped))
            self._scoring.add(id(unwrapped))

    def _answer_logps(
        self, output: LabelScores, inputs: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of chosen and rejected [P], by `ld_alpha` if there is one."""
        logps_N = label_values(output)
        if self.ld_alpha is not None:
            counts = _token_counts(inputs, logps_N.device)
            logps_N = logps_N * token_weights(*counts, self.ld_alpha)
        chosen_P, rejected_P = answer_sums(logps_N, inputs)
        return chosen_P, rejected_P

    def _scores_of(
        self,
        output: LabelScores,
        inputs: Mapping[str, Any],
        reference: tuple[Tensor | None, Tensor | None],
    ) -> Scores:
        chosen_P, rejected_P = self._answer_logps(output, inputs)
        counts = _token_counts(inputs, chosen_P.device)
        plain_P = None if self.ld_alpha is None else answer_sums(label_values(output), inputs)[0]
        return PairScores(
            chosen=chosen_P,
            rejected=rejected_P,
            reference_chosen=reference[0],
            reference_rejected=reference[1],
            chosen_tokens=counts[0],
            rejected_tokens=counts[1],
            unweighted_chosen=plain_P,
            weights=self._pair_weights(output, inputs) if self.use_weighting else None,
        )

    @torch.no_grad()
    def _pair_weights(self, output: LabelScores, inputs: Mapping[str, Any]) -> Tensor:
        """Return WPO's weight of each pair [P] (Zhou et al., arXiv 2406.11827, equation 2).

        The product over both answers of exp(mean over tokens of log p(y) - log sum_v p(v)^2).
        """
        surplus_N = label_values(output) - label_values(output, "log_sum_sq_probs")
        sums = answer_sums(surplus_N, inputs)
        counts = _token_counts(inputs, surplus_N.device)
        chosen_P, rejected_P = (total / count for total, count in zip(sums, counts, strict=True))
        return torch.exp(chosen_P + rejected_P)

    def _extras(self) -> tuple[Extra, ...]:
        logged = _LOGGED if self._is_logged() else ()
        return (*logged, "log_sum_sq_probs") if self.use_weighting else logged

    def _is_logged(self) -> bool:
        """Return whether the step's figures appear in the log, or the evaluation's."""
        if not self.model.training:
            return True
        if self.args.logging_strategy == "epoch":
            return bool(self.accelerator.gradient_state.end_of_dataloader)
        step, every = self.state.global_step + 1, self.state.logging_steps
        return bool(every and step % every == 0) or (step == 1 and self.args.logging_first_step)

    def _add(self, name: str, values: Tensor, group_ids: Tensor | None = None) -> None:
        self._means.add(name, values.detach(), group_ids, training=self.model.training)

    def _add_metrics(self, scores: Scores, output: LabelScores, inputs: Mapping[str, Any]) -> None:
        assert isinstance(scores, PairScores), "the step's own scores"
        groups_P = inputs["group_ids"]
        chosen_P, rejected_P = rewards(scores, self._losses)
        self._add("rewards/chosen", chosen_P, groups_P)
        self._add("rewards/rejected", rejected_P, groups_P)
        self._add("rewards/margins", chosen_P - rejected_P, groups_P)
        self._add("rewards/accuracies", (chosen_P > rejected_P).float(), groups_P)
        self._add("logps/chosen", scores.chosen)
        self._add("logps/rejected", scores.rejected)
        if output.entropy is not None:
            self._add_token_metrics(output, inputs)
        if self.ld_alpha is None:
            self._start_margins.add(scores)
        if self.model.training:
            # As TRL counts: a prompt for each answer.
            self._tokens += 2 * sum(inputs["prompt_lengths"]) + sum(inputs["answer_lengths"])

    def _add_token_metrics(self, output: LabelScores, inputs: Mapping[str, Any]) -> None:
        """Add means over the tokens of the batch, as TRL does."""
        lengths = list(inputs["answer_lengths"])
        logits = torch.split(label_values(output, "mean_logits"), lengths)
        top1 = torch.split(label_values(output, "is_top1"), lengths)
        self._add("entropy", label_values(output, "entropy").mean())
        self._add("logits/chosen", torch.cat(logits[::2]).mean())
        self._add("logits/rejected", torch.cat(logits[1::2]).mean())
        self._add("mean_token_accuracy", torch.cat(top1[::2]).float().mean())

    def group_documents(self, inputs: Mapping[str, Any]) -> Iterator[tuple[Tensor, int]]:
        """Yield the ids of each pair's prompt and chosen answer, and its group."""
        yield from zip(chosen_documents(inputs), inputs["group_ids"].tolist(), strict=True)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        training = self.model.training
        logs.update(self._means.pop_means(self.accelerator, training=training))
        if training:
            logs.update(self._start_margins.tell(warn=self.is_world_process_zero()))
        tokens = torch.tensor(self._tokens, device=self.accelerator.device)
        total = int(self.accelerator.reduce(tokens, reduction="sum")) // self.sequence_parts
        logs["num_tokens" if training else "eval_num_tokens"] = total
        super().log(logs, *args, **kwargs)


def _token_counts(inputs: Mapping[str, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    counts_P2 = torch.tensor(inputs["answer_lengths"], device=device).reshape(-1, 2)
    return counts_P2[:, 0], counts_P2[:, 1]
