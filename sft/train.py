"""The SFT stage.

dualign sft RECIPE
accelerate launch --config_file zero3.yaml -m dualign sft RECIPE
"""

from pathlib import Path

from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from dualign.attention.function import ATTENTION
from dualign.data.prepare import SFTData, prepare_sft
from dualign.data.request import DataRequest
from dualign.data.stream.opening import open_stream
from dualign.data.stream.stream import StreamData
from dualign.data.tokens.collate import PackedCollator
from dualign.models.new_tokens import occurrence_notes
from dualign.models.source import ModelSource, resolve_model
from dualign.retention.watching import retention_metrics, watch
from dualign.rundir import Outcome, Paused
from dualign.sft.config import SFTStage
from dualign.sft.trainer import DualModeSFTTrainer
from dualign.training.attention import with_attention
from dualign.training.isolation import check_isolation, try_isolation
from dualign.training.pausing import add_pause, train
from dualign.training.policy import load_policy
from dualign.training.positions import position_notes
from dualign.training.precision import resolved
from dualign.training.rows import request_rows, require_same_rows, tell
from dualign.training.streaming import rank_of_process
from dualign.training.trainer import (
    prepare_trainer,
    refusals_by_libraries,
    save_log,
    save_result,
    trainer_arguments,
    training_metrics,
)


def run(stage: SFTStage, work: Path, *, seed: int) -> Outcome | Paused:
    """Train on packed rows of both modes, resuming from `work`; write the result there."""
    stage = resolved(stage)
    source = resolve_model(stage.model, revision=stage.revision)
    stage = with_attention(stage, source)
    request = request_rows(stage, source, seed=seed)
    tokenizer, data = request.tokenizer, _rows(request)
    notes = stage.data_notes(data.rows)
    if isinstance(data, SFTData):
        notes += occurrence_notes(data.train, tokenizer, stage.new_tokens)
    tell(notes)
    with refusals_by_libraries(stage):
        trainer = build_trainer(stage, source, data, tokenizer, work, seed=seed)
    tell(position_notes(stage, trainer.model.config.to_dict(), data.rows))
    watch(trainer, stage, request, work)
    if paused := train(trainer, stage, work):
        return paused
    save_log(trainer, work)
    checks = save_result(trainer, stage, source, tokenizer, work)
    metrics = {**training_metrics(trainer, stage), **retention_metrics(work)}
    if isinstance(data, SFTData):
        return Outcome(metrics=metrics, rows=data.rows, checks=checks, data=data.sources)
    account = trainer.account()
    rows, sources = data.summary(account), data.sources(account)
    return Outcome(metrics=metrics, rows=rows, checks=checks, data=sources)


def _rows(request: DataRequest) -> SFTData | StreamData:
    if request.data.stream is None:
        data = prepare_sft(request)
        require_same_rows(data.train)
        return data
    return open_stream(request, rank_of_process())


def build_trainer(
    stage: SFTStage,
    source: ModelSource,
    data: SFTData | StreamData,
    tokenizer: PreTrainedTokenizerBase,
    work: Path,
    *,
    seed: int,
) -> DualModeSFTTrainer:
    """Build TRL's trainer on tokenized, masked and packed rows."""
    stage = with_attention(resolved(stage), source)
    settings = trainer_arguments(stage, stage.train, work, seed)
    # Before the model: under ZeRO-3 its weights are then sharded as they load.
    stream = data.train if isinstance(data, StreamData) else None
    if stream:
        settings["ignore_data_skip"] = True  # the stream itself goes on from where it was
    arguments = SFTConfig(**settings, dataset_kwargs={"skip_prepare_dataset": True})
    model, new_adapter = load_policy(stage, source, seed=seed)
    validates = data.validation is not None and (
        arguments.eval_strategy != "no" or stage.pause_at_step is not None
    )
    flat_rows = _rows_of_a_batch(arguments, validates=validates)
    shares = stage.data.packing != "none" or flat_rows > 1
    if shares:
        check_isolation(model.config, source.base, tokens=flat_rows * stage.data.max_tokens)
    trainer = DualModeSFTTrainer(
        model=model,
        args=arguments,
        data_collator=PackedCollator(by_document=stage.attn_implementation == ATTENTION),
        train_dataset=stream.sample() if stream else data.train,
        eval_dataset=data.validation,
        processing_class=tokenizer,
        peft_config=new_adapter,
        groups=data.groups,
    )
    if shares and stage.attn_implementation != ATTENTION:
        try_isolation(trainer, source.base, stage.attn_implementation)
    if stream:
        trainer.read_stream(stream)
    add_pause(trainer, stage, source, tokenizer, work)
    prepare_trainer(trainer, stage)
    return trainer


def _rows_of_a_batch(arguments: SFTConfig, *, validates: bool) -> int:
    """Return how many rows lie in the longest flat batch."""
    train, evaluation = arguments.per_device_train_batch_size, arguments.per_device_eval_batch_size
    return int(max(train, evaluation if validates else 1))
