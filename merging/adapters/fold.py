"""An adapter folded into its base: the 16-bit one, or the one that QLoRA training saw.

A QLoRA adapter was trained on NF4 weights. Folded into the 16-bit ones it meets weights that it
never saw; folded into what NF4 makes of them, those that it was trained on. Which of the two is
nearer to the live model is measured.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.dtypes import DTYPE_NAMES
from dualign.checkpoints.weights import find_base, find_folder, open_weights
from dualign.errors import CheckpointError
from dualign.merging.adapters.kl_gap import (
    PROMPTS,
    Gap,
    folded_logits,
    gap_between,
    live_logits,
    token_ids,
)
from dualign.merging.config import Dtype, MergeInput, MergeStage
from dualign.merging.merge import prepare, write
from dualign.merging.provenance import MERGE_JSON
from dualign.rundir import new_folder, read_run, write_json

Base = Literal["16bit", "nf4"]
_BASES: tuple[Base, ...] = ("16bit", "nf4")


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldConfig:
    """An adapter, and the base that it is folded into."""

    adapter: str
    model: str | None = None
    """the base, if not the one that the adapter names"""
    base: Base | None = None
    """None: 16bit, or for an adapter that was trained by QLoRA the one with the smaller gap"""
    dtype: Dtype = "input"
    trained_dtype: str | None = None
    """the type that training loaded the base in; None: as in run.json, else as it is stored"""
    measure: bool = True
    """compare both with the live QLoRA model"""
    prompts: tuple[str, ...] = PROMPTS


def fold_adapter(config: FoldConfig, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write the folded model to `out`; return the content of merge.json.

    It has `fold` with the base, and with the gaps of both if they were measured.

    Raises:
        MergeError: the adapter can't be folded exactly.
        CheckpointError: a file is missing or broken, or `out` exists.
    """
    folder = find_folder(config.adapter)
    stage = _training_stage(folder)
    qlora = stage.get("quantization") == "nf4" or config.base == "nf4"
    dtype = config.trained_dtype or stage.get("dtype") or _stored_dtype(config)
    if not (qlora and config.measure):
        base = _unmeasured_base(config, qlora)
        with new_folder(out, force=force) as work:
            record = _write(config, base, dtype, work)
            about = {"base": base, "trained_dtype": dtype if qlora else None}
            return _add_to_record(work, record, about)
    with new_folder(out, force=force) as work:
        folders = {base: work / base for base in _BASES}
        records = {}
        for base, room in folders.items():
            room.mkdir()
            records[base] = _write(config, base, dtype, room)
        gaps = _measure(config, folder, dtype, folders)
        nearest = min(_BASES, key=lambda base: gaps[base].kl)
        chosen = config.base or nearest
        for file in folders[chosen].iterdir():
            file.rename(work / file.name)
        for room in folders.values():
            shutil.rmtree(room)
        about = {"base": chosen, "trained_dtype": dtype, "recommended": nearest}
        about["gaps"] = {base: asdict(gap) for base, gap in gaps.items()}
        return _add_to_record(work, records[chosen], about)


def _training_stage(folder: Path) -> Mapping[str, Any]:
    """Return the stage that trained the adapter, by the run.json in its folder or one up; or {}."""
    for place in (folder, folder.parent):
        stage = read_run(place).get("config")
        if isinstance(stage, dict):
            return stage
    return {}


def _stored_dtype(config: FoldConfig) -> str:
    entries = open_weights(_reference(config, "16bit", None)).entries.values()
    return DTYPE_NAMES[max(entries, key=lambda entry: entry.size).dtype]


def _unmeasured_base(config: FoldConfig, qlora: bool) -> Base:
    if qlora and config.base is None:
        raise CheckpointError(
            f"{config.adapter}: was trained by QLoRA; without measuring, say with --base which weights it is folded "
            "into: nf4 (what it was trained on) or 16bit"
        )
    return config.base or "16bit"


def _reference(config: FoldConfig, base: Base, dtype: str | None) -> str:
    """Return the folded model as a reference that `open_weights` takes."""
    model = f"{config.model}+{config.adapter}" if config.model else config.adapter
    return f"nf4-{dtype}:{model}" if base == "nf4" else model


def _write(config: FoldConfig, base: Base, dtype: str, work: Path) -> dict[str, Any]:
    models = (MergeInput(model=_reference(config, base, dtype)),)
    stage = MergeStage(name="fold", models=models, method="passthrough", dtype=config.dtype)
    return write(prepare(stage.merge(), seed=0), work, seed=0)


def _measure(
    config: FoldConfig, adapter: Path, dtype: str, folders: Mapping[Base, Path]
) -> dict[Base, Gap]:
    adapter_config = read_json(adapter / "adapter_config.json")
    base = find_folder(config.model) if config.model else find_base(adapter, adapter_config)
    if (base / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{base}: the base is an adapter itself, so there is no live model to measure against; use --no-gap"
        )
    ids = token_ids(folders["16bit"], config.prompts)
    live = live_logits(base, adapter, ids, dtype=dtype)
    return {
        name: gap_between(live, folded_logits(folder, ids, dtype=dtype))
        for name, folder in folders.items()
    }


def _add_to_record(
    work: Path, record: Mapping[str, Any], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Add `fold` to merge.json."""
    written = json.loads((work / MERGE_JSON).read_text(encoding="utf-8"))
    write_json(work / MERGE_JSON, {**written, "fold": dict(about)})
    return {**record, "fold": dict(about)}


def read_prompts(file: Path) -> tuple[str, ...]:
    """Read the prompts of a text file, one on each line."""
    try:
        lines = map(str.strip, file.read_text(encoding="utf-8").splitlines())
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from None
    prompts = tuple(filter(None, lines))
    if not prompts:
        raise CheckpointError(f"{file}: expected a prompt on each line, found none")
    return prompts


def summary(gaps: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """Return the gaps as lines of a table."""
    lines = [f"{'base':8}{'KL, nats/token':>16}{'RMS logit':>12}{'largest':>10}"]
    lines += [
        f"{base:8}{gap['kl']:16.3e}{gap['rms']:12.4f}{gap['largest']:10.3f}"
        for base, gap in gaps.items()
    ]
    return lines
