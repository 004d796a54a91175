"""A learning rate of its own for the factor B of an adapter (LoRA+, Hayou et al., arXiv 2402.12354)."""

from collections.abc import Iterator
from typing import Any

from transformers import Trainer
from transformers.trainer_optimizer import is_optimizer_factory

from dualign.errors import ConfigError

# Arguments by which an optimizer brings groups of its own.
_OWN_GROUPS = frozenset(["params", "model", "optimizer_dict"])


def set_adapter_rates(trainer: Trainer, ratio: float) -> None:
    """Let the trainer's optimizer train B at `ratio` times the learning rate.

    Groups are those of the trainer, with and without weight decay, and B's after them: a schedule
    multiplies all rates alike, and the rate in the log is that of the other parameters.

    Raises:
        ConfigError: the optimizer brings groups of its own.
    """
    kind, arguments = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    if is_optimizer_factory(kind) or _OWN_GROUPS & set(arguments):
        raise ConfigError(
            f"lora.loraplus_lr_ratio: {trainer.args.optim} has rates of its own for groups of parameters; "
            "choose another train.optim, such as adamw_torch_fused, or remove the ratio"
        )
    groups = list(_groups(trainer, float(arguments["lr"]), ratio))
    trainer.optimizer_cls_and_kwargs = (kind, {**arguments, "params": groups})


def _groups(trainer: Trainer, rate: float, ratio: float) -> Iterator[dict[str, Any]]:
    decays = set(trainer.get_decay_parameter_names(trainer.model))
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    for is_b in (False, True):
        for decay in (True, False):
            members = [
                parameter
                for name, parameter in trained.items()
                if ("lora_B" in name) is is_b and (name in decays) is decay
            ]
            if members:
                yield {
                    "params": members,
                    "weight_decay": trainer.args.weight_decay if decay else 0.0,
                    "lr": rate * ratio if is_b else rate,
                }
