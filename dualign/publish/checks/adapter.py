"""Check that an adapter holds exactly what its stages trained, on one base.

An adapter trained on another stage's adapter holds that one first and its own after it:

    [s1 B1, s2 B2] @ [A1; A2] = s1 B1 A1 + s2 B2 A2

So the rank of a module is the sum of the ranks that were trained on it, its first rows of A are the
parent's A, and its first columns of B the parent's B times its scaling, to the bit. The first parent
may be an adapter that no stage made. For `sft` (rank 4) and `apo` on it
(rank 2): rank 6; A[:4] and B[:, :4] are sft's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dualign.checkpoints.lora import Adapter, LoraModule, read_adapter
from dualign.checkpoints.patterns import largest_rank, published_rank
from dualign.checkpoints.token_rows import joined_rows
from dualign.errors import DualignError
from dualign.model_ref import ModelRef, StageRef, adapter_base
from dualign.publish.checklist import CheckOutcome, judge
from dualign.publish.lineage import Lineage
from dualign.publish.release import Release
from dualign.report.runs import StageRun
from dualign.stages import stage_kind


def check_composition(release: Release, folder: Path) -> CheckOutcome | None:
    """The run's adapter holds those that it was trained on, and was proven by loading it again."""
    lineage = release.lineage
    if lineage.adapter_folder is None or release.adapter_base is None:
        return None
    chain = _adapter_chain(lineage)
    try:
        adapter = read_adapter(lineage.adapter_folder)
        start = read_adapter(chain[0].folder) if chain and chain[0].lora is None else None
    except DualignError as error:
        return judge([str(error)], "")
    faults = [
        *_base_faults(adapter, lineage),
        *_part_faults(adapter, chain, start, lineage),
        *_reload_faults(lineage),
    ]
    if release.manifest.fold and lineage.quantized:
        faults.append(
            "it was trained on a base in 4 bits (NF4), and folded into the 16-bit base it is another "
            "model; publish the adapter (--what adapter)"
        )
    return judge(faults, f"{_sum(chain, start, ' (rank {})')} on the base, exactly")


@dataclass(frozen=True, slots=True)
class _Part:
    """One adapter of those that add up to the run's."""

    name: str
    folder: Path
    lora: Mapping[str, Any] | None
    """the `lora:` of the stage that trained it; None: an adapter that no stage of the pipeline made"""


def _adapter_chain(lineage: Lineage) -> list[_Part]:
    """Return the adapters that add up to the run's, in the order of training."""
    by_name = {stage.name: stage for stage in lineage.stages}
    chain: list[_Part] = []
    stage: StageRun | None = lineage.run
    while stage and stage_kind(stage.kind).trains and stage.record["config"].get("lora"):
        chain.insert(0, _Part(stage.name, stage.path, stage.record["config"]["lora"]))
        text = str(stage.record["config"].get("model") or "")
        ref = StageRef.parse(text)
        folder = None if ref else ModelRef.parse(text).path
        parent = by_name.get(ref.label) if ref else None
        if folder and (folder / "adapter_config.json").is_file():
            chain.insert(0, _Part(folder.name, folder, None))
        has_adapter = parent and (parent.path / "adapter_config.json").is_file()
        stage = parent if has_adapter else None
    return chain


def _sum(chain: Sequence[_Part], start: Adapter | None, form: str) -> str:
    """Return `sft (rank 4) + apo (rank 2)`."""
    ranks = [
        largest_rank(part.lora) if part.lora else _rank(start) if start else None for part in chain
    ]
    return " + ".join(
        f"{part.name}{form.format(rank)}" for part, rank in zip(chain, ranks, strict=True)
    )


def _base_faults(adapter: Adapter, lineage: Lineage) -> Iterator[str]:
    base = adapter_base(adapter.folder, adapter.config).path
    if base and (base / "adapter_config.json").is_file():
        yield (
            f"its base, {base.name}, is an adapter itself, so that whoever loads it gets half of the "
            f"training; run {lineage.run.name} again with this version, which adds the two up"
        )


def _part_faults(
    adapter: Adapter, chain: Sequence[_Part], start: Adapter | None, lineage: Lineage
) -> Iterator[str]:
    """Find modules whose rank isn't the parent's, or the parent's and the stage's own."""
    if not chain:
        return
    parent = start if len(chain) == 2 else None
    if len(chain) > 1 and parent is None:
        try:
            parent = read_adapter(chain[-2].folder)
        except DualignError as error:
            yield f"{chain[-2].name}: {error}"
            return
    own, before = chain[-1].lora or {}, parent.modules if parent else {}
    added = {
        path: module.rank - (before[path].rank if path in before else 0)
        for path, module in adapter.modules.items()
    }
    if not any(added.values()) or any(
        rank not in (0, published_rank(own, path)) for path, rank in added.items()
    ):
        yield (
            f"its rank is {_rank(adapter)}, and the stages trained {_sum(chain, start, ' {}')}: an "
            f"adapter is missing in it; run {lineage.run.name} again"
        )
    elif parent:
        yield from _parent_faults(adapter, parent, chain[-2].name, lineage)


def _parent_faults(adapter: Adapter, parent: Adapter, name: str, lineage: Lineage) -> Iterator[str]:
    for path, module in parent.modules.items():
        if path not in adapter.modules or not _starts_with(adapter.modules[path], module):
            yield (
                f"{path} doesn't hold the adapter of {name} that it was trained on; "
                f"run {lineage.run.name} again"
            )
            return
    rows, whole = (joined_rows([part], remedy="") for part in (parent, adapter))
    for path, (tokens, values) in rows.items():
        kept, published = whole.get(path, ([], values))
        places = [kept.index(token) for token in tokens if token in kept]
        if len(places) < len(tokens) or not torch.equal(published[places], values):
            yield (
                f"{path} doesn't hold the rows of tokens that {name} trained; run {lineage.run.name} again"
            )


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


def _rank(adapter: Adapter) -> int:
    return max((module.rank for module in adapter.modules.values()), default=0)
