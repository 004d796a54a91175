"""Whether an adapter is exactly what its stages trained: one adapter on one base, the parent's factors in it to the bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dualign.checkpoints.lora import Adapter, LoraModule, read_adapter
from dualign.errors import DualignError
from dualign.model_ref import StageRef, adapter_base
from dualign.publish.checks.checks import Check, check
from dualign.publish.lineage import Lineage
from dualign.report.runs import StageRun
from dualign.stages import stage_kind


def composition_check(lineage: Lineage, folder: Path, *, folded: bool) -> Check:
    """An adapter trained on another stage's adapter holds that one first and its own after it, ranks added up.

    `[s1 B1, s2 B2] @ [A1; A2] = s1 B1 A1 + s2 B2 A2`: so the first columns and rows have to be the
    parent's, scaled, to the bit, and the rank the sum of what the stages trained.
    """
    chain = adapter_chain(lineage)
    try:
        own = read_adapter(folder)
    except DualignError as error:
        return check("composition", [str(error)], "")
    faults = [*_base_faults(own), *_rank_faults(own, chain), *_parent_faults(own, chain, lineage)]
    faults += _reload_faults(lineage)
    if folded and lineage.quantised:
        faults.append(
            "it was trained on a base in 4 bits (NF4), and folded into the 16-bit base it is another "
            "model; publish the adapter (--what adapter)"
        )
    told = " + ".join(f"{stage.name} (rank {_rank(stage)})" for stage in chain)
    return check("composition", faults, f"{told} on the base, exactly")


def adapter_chain(lineage: Lineage) -> list[StageRun]:
    """The stages whose adapters make up the run's, the first trained first."""
    by_name = {stage.name: stage for stage in lineage.stages}
    chain: list[StageRun] = []
    stage: StageRun | None = lineage.run
    while stage and stage_kind(stage.kind).trains and stage.record["config"].get("lora"):
        chain.insert(0, stage)
        ref = StageRef.parse(str(stage.record["config"].get("model") or ""))
        parent = by_name.get(ref.label) if ref else None
        has_adapter = parent and (parent.path / "adapter_config.json").is_file()
        stage = parent if has_adapter else None
    return chain


def _base_faults(own: Adapter) -> Iterator[str]:
    base = adapter_base(own.folder, own.config).path
    if base and (base / "adapter_config.json").is_file():
        yield (
            f"its base, {base.name}, is an adapter itself, so that whoever loads it gets half of the "
            "training; run the stage again with this version, which adds the two up"
        )


def _rank_faults(own: Adapter, chain: list[StageRun]) -> Iterator[str]:
    wanted = sum(_rank(stage) for stage in chain)
    found = max((module.rank for module in own.modules.values()), default=0)
    if wanted and found != wanted:
        parts = " + ".join(str(_rank(stage)) for stage in chain)
        yield f"its rank is {found}, and the stages trained {parts}: an adapter is missing in it; run the stage again"


def _parent_faults(own: Adapter, chain: list[StageRun], lineage: Lineage) -> Iterator[str]:
    if len(chain) < 2:
        return
    parent_folder = chain[-2].path
    try:
        parent = read_adapter(parent_folder)
    except DualignError as error:
        yield f"{parent_folder.name}: {error}"
        return
    for path, module in parent.modules.items():
        if path not in own.modules or not _holds(own.modules[path], module):
            yield (
                f"{path} doesn't hold the adapter of {parent_folder.name} that it was trained on; "
                f"run {lineage.run.name} again"
            )
            return


def _holds(whole: LoraModule, part: LoraModule) -> bool:
    """Whether the first rows of A and columns of B are the part's."""
    A, B = part.A.float(), part.B.float() * part.scaling
    if whole.rank < part.rank or whole.scaling != 1.0:
        return False
    return torch.equal(whole.A[: part.rank].float(), A) and torch.equal(
        whole.B[:, : part.rank].float(), B
    )


def _reload_faults(lineage: Lineage) -> Iterator[str]:
    checks: dict[str, Any] = lineage.run.record.get("checks") or {}
    if "reload_max_logit_difference" not in checks:
        yield (
            "run.json has no proof that the saved adapter gives the trained model's logits; train with "
            "verify_reload: true"
        )


def _rank(stage: StageRun) -> int:
    return int((stage.record["config"].get("lora") or {}).get("r") or 0)
