"""The preference stage.

dualign prefer RECIPE
accelerate launch --config_file zero3.yaml -m dualign prefer RECIPE
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from trl import DPOConfig

from dualign.attention.function import ATTENTION
from dualign.data.prepare import PairData, RatedData, prepare_pairs, prepare_rated
from dualign.models.pairs import PAIR, Layout, PairCollator, pair_sizes
from dualign.models.source import ModelSource, resolve_model
from dualign.preference.config import PreferenceStage
from dualign.preference.losses.settings import loss_settings
from dualign.preference.losses.table import estimates_kl
from dualign.preference.rated import RatedAnswerTrainer, answer_columns, with_mismatched
from dualign.preference.reference import reference_copy, with_cached_reference
from dualign.preference.start_margins import start_metrics
from dualign.preference.trainer import DualModeDPOTrainer
from dualign.retention.watching import retention_metrics, watch
from dualign.rundir import Outcome, Paused
from dualign.training.arguments import of_trl
from dualign.training.attention import with_attention
from dualign.training.parallelism import parallelism
from dualign.training.pausing import add_pause, train
from dualign.training.policy import load_policy
from dualign.training.positions import position_notes
from dualign.training.precision import resolved
from dualign.training.rows import request_rows, require_same_rows, tell
from dualign.training.trainer import (
    prepare_trainer,
    refusals_by_libraries,
    save_log,
    save_result,
    trainer_arguments,
    training_metrics,
)

logger = logging.getLogger(__name__)


def run(stage: PreferenceStage, work: Path, *, seed: int) -> Outcome | Paused:
    """Train on pairs or rated answers of both modes, resuming from `work`; write the result there."""
    stage = resolved(stage)
    source = resolve_model(stage.model, revision=stage.revision)
    stage = with_attention(stage, source)
    request = request_rows(stage, source, seed=seed)
    prepare = prepare_rated if stage.row_type == "rated" else prepare_pairs
    tokenizer, data = request.tokenizer, prepare(request)
    require_same_rows(data.train)
    tell(stage.data_notes(data.rows))
    if stage.batch_tokens is not None:  # before the model is loaded
        answers = ("answer_ids",) if stage.row_type == "rated" else PAIR
        pair_sizes(data.train, _layout(stage), most=stage.batch_tokens, answers=answers)
    if stage.reference == "cached":
        data = with_cached_reference(data, stage, source, work)
    with refusals_by_libraries(stage):
        trainer = build_trainer(stage, source, data, tokenizer, work, seed=seed)
    tell(position_notes(stage, trainer.model.config.to_dict(), data.rows))
    watch(trainer, stage, request, work)
    if paused := train(trainer, stage, work):
        return paused
    save_log(trainer, work)
    checks = save_result(trainer, stage, source, tokenizer, work)
    metrics = {**training_metrics(trainer, stage), "reference": stage.reference_source}
    metrics |= start_metrics(trainer.state.log_history) | retention_metrics(work)
    return Outcome(metrics=metrics, rows=data.rows, checks=checks, data=data.sources)


def build_trainer(
    stage: PreferenceStage,
    source: ModelSource,
    data: PairData | RatedData,
    tokenizer: PreTrainedTokenizerBase,
    work: Path,
    *,
    seed: int,
) -> DualModeDPOTrainer:
    """Build TRL's trainer on tokenized pairs or rated answers. The reference is the model the stage starts from.

    `reference: auto` is the policy with its new adapter off, or without LoRA a frozen copy;
    `cached` computes the log-probabilities once, before training.
    """
    stage = with_attention(resolved(stage), source)
    layout = _layout(stage)
    if layout == "padded":
        attention = stage.attn_implementation
        logger.warning("pairs: with %s attention, each answer has its prompt again", attention)
    losses = loss_settings(stage.train)
    names = [name for name, _ in losses.losses]
    settings = {"loss_type": "apo_zero", **_fixed_batches(names)} | of_trl(stage.train)
    if stage.batch_tokens is not None and parallelism(stage.launch).sp_size > 1:
        settings["per_device_train_batch_size"] = 1  # a batch of pairs is one row to DeepSpeed
    settings = trainer_arguments(stage, settings, work, seed)
    # Without a reference nothing is computed ahead; it tells DPOTrainer to keep no copy.
    ahead = stage.reference_source in ("cached", None)
    # Before the model: under ZeRO-3 its weights are then sharded as they load.
    arguments = DPOConfig(**settings, precompute_ref_log_probs=ahead)
    model, new_adapter = load_policy(stage, source, seed=seed)
    kind: type[DualModeDPOTrainer] = DualModeDPOTrainer
    answers: tuple[str, ...] = PAIR
    if stage.row_type == "rated":
        kind, answers = RatedAnswerTrainer, answer_columns(names)
        batch_rows = arguments.per_device_train_batch_size
        data = _mismatched(data, names, batch_rows, stage.data.max_tokens)
    trainer = kind(
        model=model,
        ref_model=reference_copy(stage, source),
        args=arguments,
        data_collator=PairCollator(
            layout=layout, pad_token_id=tokenizer.pad_token_id, answers=answers
        ),
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=tokenizer,
        peft_config=new_adapter,
        groups=data.groups,
        losses=losses,
        batch_tokens=stage.batch_tokens,
    )
    add_pause(trainer, stage, source, tokenizer, work)
    prepare_trainer(trainer, stage)
    return trainer


def _layout(stage: PreferenceStage) -> Layout:
    """Return the layout of a stage whose attention is spelled out."""
    return "shared" if stage.attn_implementation == ATTENTION else "padded"


def _fixed_batches(losses: Sequence[str]) -> dict[str, str]:
    """Return the order of rows in which a mismatched answer comes from its row's batch, as in TRL."""
    return {"train_sampling_strategy": "sequential"} if estimates_kl(losses) else {}


def _mismatched(
    data: PairData | RatedData, losses: Sequence[str], batch_rows: int, max_tokens: int
) -> PairData | RatedData:
    """Return the rows with the answers that a KL is estimated from, if a loss does."""
    if not estimates_kl(losses):
        return data
    train, validation = (
        rows and with_mismatched(rows, batch_rows, max_tokens)
        for rows in (data.train, data.validation)
    )
    return replace(data, train=train, validation=validation)
