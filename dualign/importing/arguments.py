"""TrainingArguments of a tool that has transformers' own: carried over by their names."""

from dualign.importing.draft import Draft
from dualign.training.arguments import DPO_ARGUMENTS, SFT_ARGUMENTS

GONE_KTO_PAIR = "kto_pair is gone from TRL: bco_pair is the nearest, a logistic loss with the mean reward in place of the KL"


def assume_simpo_beta(draft: Draft, key: str) -> None:
    """Set the beta of SimPO that a file without `key` has in every tool: TRL's 0.1."""
    if draft.get(key) is None:
        says = "isn't there: TRL's 0.1, which is next to nothing for SimPO, where 2 to 10 are usual"
        draft.assume(key, "train.beta", 0.1, says)


def carry_arguments(draft: Draft) -> None:
    """Carry every key without a row that is an argument of the installed transformers and TRL.

    Names are those of the installed source, so an argument that a release adds is carried as well.
    """
    names = (DPO_ARGUMENTS if draft.kind == "preference" else SFT_ARGUMENTS).names()
    for key in draft.document.value:
        place = (key,)
        is_noted = place in draft.notes or draft.table.row(place) is not None
        if key in names and not is_noted:
            value = draft.get(*place)
            target = "" if value is None else f"train.{key}"
            says = f"is empty: {draft.tool}'s default" if value is None else ""
            draft.carry(place, target, value, says)
    ratio, steps = draft.get("warmup_ratio"), draft.get("warmup_steps")
    if ratio is not None and steps:
        draft.carry("warmup_ratio", says="has no effect beside warmup_steps")
    elif ratio is not None:
        draft.carry("warmup_ratio", "train.warmup_steps", ratio)
