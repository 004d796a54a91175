"""Check that an adapter holds exactly what its stages trained, on one base.

An adapter trained on another stage's adapter holds that one first and its own after it:

    [s1 B1, s2 B2] @ [A1; A2] = s1 B1 A1 + s2 B2 A2

So its rank is the sum of the trained ranks, its first rows of A are the parent's A, and its first
columns of B the parent's B times its scaling, to the bit. For `sft` (rank 4) and `apo` on it
(rank 2): rank 6; A[:4] and B[:, :4] are sft's.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dualign.checkpoints.lora import Adapter, LoraModule, read_adapter
from dualign.errors import DualignError
from dualign.model_ref import StageRef, adapter_base
from dualign.publish.checklist import CheckOutcome, judge
from dualign.publish.lineage import Lineage
from dualign.publish.release import Release
from dualign.report.runs import StageRun
from dualign.stages import stage_kind


def check_composition(release: Release, folder: Path) -> CheckOutcome | None:
    """The run's adapter holds its parent's, and both were proven by loading them again."""
    lineage = release.lineage
    if lineage.adapter_folder is None or release.adapter_base is None:
        return None
    chain = _adapter_chain(lineage)
    try:
        adapter = read_adapter(lineage.adapter_folder)
    except DualignError as error:
        return judge([str(error)], "")
    faults = [
        *_base_faults(adapter),
        *_rank_faults(adapter, chain),
        *_parent_faults(adapter, chain, lineage),
        *_reload_faults(lineage),
    ]
    if release.manifest.fold and lineage.quantized:
        faults.append(
            "it was trained on a base in 4 bits (NF4), and folded into the 16-bit base it is another "
            "model; publish the adapter (--what adapter)"
        )
    parts = " + ".join(f"{stage.name} (rank {_rank(stage)})" for stage in chain)
    return judge(faults, f"{parts} on the base, exactly")


def _adapter_chain(lineage: Lineage) -> list[StageRun]:
    """Return the stages whose adapters make up the run's, in the order of training."""
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


def _base_faults(adapter: Adapter) -> Iterator[str]:
    base = adapter_base(adapter.folder, adapter.config).path
    if base and (base / "adapter_config.json").is_file():
        yield (
            f"its base, {base.name}, is an adapter itself, so that whoever loads it gets half of the "
            "training; run the stage again with this version, which adds the two up"
        )


def _rank_faults(adapter: Adapter, chain: list[StageRun]) -> Iterator[str]:
    expected = sum(_rank(stage) for stage in chain)
    rank = max((module.rank for module in adapter.modules.values()), default=0)
    if expected and rank != expected:
        parts = " + ".join(str(_rank(stage)) for stage in chain)
        yield f"its rank is {rank}, and the stages trained {parts}: an adapter is missing in it; run the stage again"


def _parent_faults(adapter: Adapter, chain: list[StageRun], lineage: Lineage) -> Iterator[str]:
    if len(chain) < 2:
        return
    parent_folder = chain[-2].path
    try:
        parent = read_adapter(parent_folder)
    except DualignError as error:
        yield f"{parent_folder.name}: {error}"
        return
    for path, module in parent.modules.items():
        if path not in adapter.modules or not _starts_with(adapter.modules[path], module):
            yield (
                f"{path} doesn't hold the adapter of {parent_folder.name} that it was trained on; "
                f"run {lineage.run.name} again"
            )
            return


def _starts_with(whole: LoraModule, part: LoraModule) -> bool:
    """True if the first rows of A and columns of B are the part's, scaled."""
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
