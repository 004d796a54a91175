"""The keys that SFT and preference stages share: model, adapter, template, trainer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dualign.checkpoints.context import ContextConfig
from dualign.data.config import DataConfig
from dualign.data.conversation import RowType
from dualign.launcher import LaunchConfig
from dualign.models.new_tokens import NewToken
from dualign.retention.config import RetainConfig
from dualign.switch import Switch
from dualign.training.adapter import AdapterConfig, quantization_issues
from dualign.training.argument_values import value_issues
from dualign.training.template_kwargs import template_kwargs_issues

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Arithmetic = Literal["float32", "bfloat16", "float16"]
TILE_TOKENS = 2048
"""of an MLP in tiles"""
Attention = Literal["auto", "dualign", "sdpa", "eager", "flash_attention_2", "flex_attention"]


_FIGURE = re.compile(
    r"loss(/(think|no_think|text))?|rewards/(margins|accuracies)(/(think|no_think))?|loss/source/.+"
    r"|retain/(loss|kl)/text|retain/.+/(think|no_think)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStopping:
    """Which step is published, and when the stage stops before its last."""

    metric: str = "loss"
    """the held-out loss, loss/MODE, rewards/margins, rewards/accuracies, or of retain: retain/TASK/MODE,
    retain/loss/MODE, retain/kl/MODE
    """
    patience: int | None = None
    """stop after so many measurements without a better one; absent: train to the end"""

    def problems(self) -> list[tuple[str, str]]:
        issues = []
        if not _FIGURE.fullmatch(self.metric):
            known = "loss, loss/MODE, rewards/margins, rewards/accuracies or retain/TASK/MODE"
            issues.append(("metric", f"expected {known}, found {self.metric!r}"))
        if self.patience is not None and self.patience < 1:
            issues.append(("patience", f"expected 1 or more, found {self.patience}"))
        return issues


def lower_is_better(metric: str) -> bool:
    """Return whether less of a figure is better: of a loss and a divergence."""
    return bool({"loss", "kl"} & set(metric.split("/")[:2]))


def reads_metric(schedule: object) -> bool:
    """Return whether a schedule of the learning rate follows `metric_for_best_model`."""
    return str(getattr(schedule, "value", schedule)) in ("reduce_lr_on_plateau", "greedy")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingStage:
    """The keys that every training stage has."""

    name: str
    """names the stage and its run directory"""
    model: str
    """a local folder, hub id, stage:NAME, or embedded:smollm2-135m-instruct"""
    revision: str | None = None
    """branch, tag or commit of a hub id"""
    dtype: Dtype = "auto"
    """type of the weights in memory; auto: float32 on a CPU, by device and lora on a GPU (docs/gpu.md)"""
    rounded_updates: bool = False
    """full fine-tuning of 16-bit weights at a learning rate at which rounding loses most of each update"""
    attn_implementation: Attention = "auto"
    """each isolates packed documents; auto: dualign, of each document by itself, or where a model can't, sdpa or eager"""
    tiled_mlp: bool = False
    """MLPs in tiles of 2,048 tokens, computed again in the backward pass: less memory for long rows (docs/long-context.md)"""
    quantization: Literal["nf4"] | None = None
    """nf4: the frozen base in 4 bits (QLoRA); needs lora"""
    context: ContextConfig | None = None
    """more positions for the model that trains, and for the result (docs/long-context.md)"""
    template: str = "dualign"
    """dualign, chatml, smollm3, smollm3-training, tokenizer (the model's own), trl:NAME, or a .jinja file"""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """given to the template for every row, e.g. date"""
    switch: Switch | None = None
    """what switches the modes; absent: found by trying the known switches on the template"""
    lora: AdapterConfig | None = None
    """train an adapter; absent: every weight"""
    save: Literal["adapter", "merged"] | None = None
    """with lora: publish the adapter (default) or the weights with the adapter folded in"""
    launch: str | LaunchConfig | None = None
    """an accelerate config file, or one with keys: `dualign run` starts this stage by accelerate launch (docs/distributed.md)"""
    async_checkpoints: bool = False
    """under FSDP2: write checkpoints while training goes on, from a copy in the host's memory (docs/distributed.md)"""
    pause_at_step: int | None = None
    """stop after this step with a checkpoint and the held-out metrics; without the key, a later run goes on to the same bits"""
    retain: RetainConfig | None = None
    """what the model could do before, measured while it trains (docs/retain.md)"""
    early_stopping: EarlyStopping | None = None
    """publish the best step instead of the last, and stop when no better one comes (docs/retain.md)"""
    verify_reload: bool = True
    """load what was saved and compare its logits with the live model's"""

    @property
    def row_type(self) -> RowType:
        """What its rows are."""
        return "conversation"

    @property
    def depends_on_processes(self) -> str:
        """What of its steps another number of processes would change; "" if nothing."""
        data: DataConfig = self.data  # type: ignore[attr-defined]  # each kind has it
        return "data.streaming deals rows out" if data.stream else ""

    @property
    def new_tokens(self) -> tuple[NewToken, ...]:
        """The tokens that it adds to the model's."""
        return ()

    def data_notes(self, rows: Mapping[str, Any]) -> list[str]:
        """Return what is to say about ROWS of its data before the first step."""
        kept = {entry["mode"] for entry in rows["by"] if entry["kept"]}
        if "no_think" not in kept or "think" in kept:
            return []
        return [
            "warning: all conversations are no_think: a model that could think loses that. Make traces "
            "for the rows (kind: traces, docs/traces.md), or replay think rows as a source with a share"
        ]

    def unused(self) -> list[tuple[str, str]]:
        """Return settings of `train:` that would change what is learned, if something read them."""
        return []

    def problems(self) -> list[tuple[str, str]]:
        issues = template_kwargs_issues(self.template_kwargs)
        if self.quantization and self.lora is None:
            issues.append(
                ("quantization", "nf4 weights can't be trained: add lora, or remove quantization")
            )
        if self.save and self.lora is None:
            issues.append(("save", "only with lora: full fine-tuning always saves the weights"))
        if self.lora and self.quantization:
            issues += quantization_issues(self.lora)
        if self.pause_at_step is not None and self.pause_at_step < 1:
            issues.append(("pause_at_step", f"expected 1 or more, found {self.pause_at_step}"))
        issues += _choice_problems(self)
        if self.switch is not None and not self.switch:
            issues.append(("switch", "says nothing: expected entries for think and no_think"))
        if self.quantization and self.save == "merged":
            issues.append(("save", "an nf4 base can't be merged exactly: save the adapter"))
        if self.context and self.lora and self.save != "merged":
            first = "" if self.quantization else "set save: merged, or "
            says = "an adapter names a base without these positions, and would be loaded on it"
            before = (
                "stretch that first: a merge stage with this context, and model: stage:NAME here"
            )
            issues.append(("context", f"{says}: {first}{before}"))
        return issues


def _choice_problems(stage: Any) -> list[tuple[str, str]]:
    """Return why a training stage can't choose its step: nothing measures the figure, or not when it counts."""
    early, retain, train = stage.early_stopping, stage.retain, stage.train
    strategy, native = train.get("eval_strategy", "no"), train.get("load_best_model_at_end")
    if early and native:
        return [("early_stopping", "train.load_best_model_at_end chooses too: remove one of them")]
    if issues := _schedule_problems(stage):
        return issues
    if not (early or native):
        return []
    if early and early.metric.startswith("retain/"):
        if retain is None or retain.every is None:
            needs = f"{early.metric} is measured by retain: expected that block with every"
            return [("early_stopping.metric", needs)]
        return []
    key = "early_stopping" if early else "train.load_best_model_at_end"
    if early and strategy == "no":
        needs = (
            "the held-out rows aren't measured: set train.eval_strategy and data.validation_rows"
        )
        return [(key, needs)]
    if not (retain and retain.bound and retain.every):
        return []
    steps = train.get("eval_steps") or train.get("logging_steps", 10)
    if strategy != "steps" or steps < 1 or retain.every % steps:
        needs = "a bound is known where retain measures: set train.eval_strategy: steps, and every to a multiple of"
        return [("retain.every", f"{needs} train.eval_steps")]
    return []


def _schedule_problems(stage: Any) -> list[tuple[str, str]]:
    """Return why a stage can't choose by its figure: a schedule has another one, or it is of pairs."""
    early, bounded = stage.early_stopping, bool(stage.retain and stage.retain.bound)
    if early and early.metric.startswith("rewards/") and stage.row_type == "conversation":
        needs = "an sft stage has no pairs: expected loss, loss/MODE or retain/TASK/MODE"
        return [("early_stopping.metric", needs)]
    if not (reads_metric(stage.train.get("lr_scheduler_type")) and (early or bounded)):
        return []
    followed = str(stage.train.get("metric_for_best_model", "loss")).removeprefix("eval_")
    if early and early.metric == followed and not bounded:
        return []
    says = f"transformers keeps the best step by {followed} for this schedule, and no other: "
    way_out = "choose another, or remove early_stopping and retain.bound"
    return [("train.lr_scheduler_type", says + way_out)]


def training_problems(
    train: Mapping[str, Any], dtype: str, data: DataConfig
) -> list[tuple[str, str]]:
    """Return the problems of training arguments that can't work, or not together."""
    issues = []
    if train.get("bf16") and train.get("fp16"):
        issues.append(("train.fp16", "bf16 and fp16 are both on: choose one"))
    if dtype not in ("auto", "float32") and train.get("fp16"):
        issues.append(("train.fp16", f"fp16 autocast needs float32 weights, found dtype {dtype}"))
    for name, off in (("eval_strategy", "no"), ("eval_on_start", False)):
        if train.get(name, off) not in (off, False) and not data.validates:
            needs = "needs data.validation_rows above 0, or a source with validation: true"
            issues.append((f"train.{name}", needs))
    return issues + value_issues(train)


def stream_problems(train: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the training arguments that don't hold for rows of a stream, which has no length."""
    issues = []
    if train.get("max_steps", -1) < 1:
        needs = "a stream has no length, so the number of steps has to be said: expected 1 or more"
        issues.append(("train.max_steps", f"{needs}, found {train.get('max_steps', 'nothing')}"))
    if "num_train_epochs" in train:
        issues.append(("train.num_train_epochs", "a stream has no epochs: max_steps ends it"))
    if train.get("dataloader_num_workers"):
        needs = "a stream is read by a thread of the process, and by no workers: remove it"
        issues.append(("train.dataloader_num_workers", needs))
    if train.get("auto_find_batch_size"):
        needs = "a checkpoint counts the rows of a stream in batches of one size: remove it"
        issues.append(("train.auto_find_batch_size", needs))
    return issues
