"""Rows of both modes that a quantizer reads, rendered by the checkpoint's own template.

They are rows of the SFT stage that the model comes from, in the shares of the modes that training
had, or those of a file. Held-out rows are what both models are asked afterwards.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dualign.data.conversation import MODES, Mode
from dualign.data.seeds import rng
from dualign.errors import ConfigError
from dualign.export.compressed.types import CALIBRATION_ROWS
from dualign.export.run_rows import in_run, training_record

if TYPE_CHECKING:
    from datasets import Dataset

    from dualign.data.prepare import SFTData

logger = logging.getLogger(__name__)
_MAX_TOKENS = 2048
"""of a row; what is longer is cut"""
_ANY_LENGTH = 1 << 30
"""of a row of a file: long traces are cut, not left out as training would"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationRow:
    """One conversation as the model reads it."""

    mode: str
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The rows, and where they are from."""

    origin: str
    rows: tuple[CalibrationRow, ...]
    seed: int
    available: Mapping[str, int]
    """rows of each mode that there were"""

    def record(self) -> dict[str, Any]:
        """Return the account for export.json: rows and tokens by mode."""
        tokens: Counter[str] = Counter()
        for row in self.rows:
            tokens[row.mode] += len(row.ids)
        counts = Counter(row.mode for row in self.rows)
        modes = {
            mode: {"available": count, "rows": counts[mode], "tokens": tokens[mode]}
            for mode, count in self.available.items()
        }
        return {"from": self.origin, "seed": self.seed, "modes": modes}


def calibration(
    model: str, file: str | None, *, rows: int = CALIBRATION_ROWS, seed: int = 0
) -> Calibration:
    """Return `rows` rows of the file, or of the SFT stage that the model comes from.

    Args:
        file: rows in any shape that training reads, each with its mode.

    Raises:
        ConfigError: there is neither a file nor such a stage.
        DualignError: the rows can't be read or rendered.
    """
    if rows < 1:
        raise ConfigError(f"--calibration-rows: expected 1 or more, found {rows}")
    data, origin = _data(model, file, seed)
    by_mode: dict[str, list[tuple[int, ...]]] = {}
    for mode, ids, _ in _documents(data, data.train):
        by_mode.setdefault(mode, []).append(ids[:_MAX_TOKENS])
    drawn = []
    available = {mode: len(of_mode) for mode, of_mode in by_mode.items()}
    counts = _shares(available, rows)
    random = rng(seed, "calibration")
    for mode, count in counts.items():
        places = sorted(random.permutation(len(by_mode[mode]))[:count].tolist())
        drawn += [CalibrationRow(mode=mode, ids=by_mode[mode][place]) for place in places]
    for mode in MODES:
        if not counts.get(mode):
            logger.warning(
                "%s: no rows in %s mode, so nothing tells the quantizer what that mode needs; "
                "expected rows of both modes",
                origin,
                mode,
            )
    order = random.permutation(len(drawn)).tolist()
    return Calibration(
        origin=origin,
        rows=tuple(drawn[place] for place in order),
        seed=seed,
        available=available,
    )


def held_out_prompts(
    model: str, tokenizer: Any, *, count: int, seed: int = 0
) -> tuple[tuple[tuple[Mode, str], ...], str]:
    """Return prompts of held-out rows of the model's SFT stage, `count` of each mode, and their origin.

    A prompt is the row up to its first supervised token. Empty if nothing was held out.
    """
    if training_record(model) is None:
        return (), ""
    data, origin = _data(model, None, seed)
    if data.validation is None:
        return (), ""
    prompts: dict[Mode, list[str]] = {mode: [] for mode in MODES}
    for mode, ids, start in _documents(data, data.validation):
        if mode in prompts and start and len(prompts[mode]) < count:
            prompts[mode].append(tokenizer.decode(ids[:start]))
    pairs = tuple((mode, text) for mode, texts in prompts.items() for text in texts)
    return pairs, f"held-out rows of {origin}"


def _data(model: str, file: str | None, seed: int) -> "tuple[SFTData, str]":
    """Return prepared rows and their origin in words."""
    from dualign.data.prepare import prepare_sft
    from dualign.models.data_request import load_data_request

    trained = training_record(model) if file is None else None
    if file is None and trained is None:
        raise ConfigError(
            f"{model}: no run says which rows it was trained on; give rows of both modes with "
            "--calibration FILE"
        )
    settings: Any = {"sources": [{"path": file}], "max_tokens": _ANY_LENGTH, "packing": "none"}
    origin, switch = str(file), None
    if trained is not None:
        stage, record = trained
        config = record.get("config") or {}
        settings = {**in_run(config["data"], stage), "num_proc": 1}
        switch, seed, origin = config.get("switch"), record.get("seed", seed), f"stage {stage.name}"
    request = load_data_request(settings, model, "tokenizer", None, switch, seed=seed)
    return prepare_sft(request), origin


def _documents(data: "SFTData", packed: "Dataset") -> "Sequence[tuple[Any, tuple[int, ...], int]]":
    """Return (mode, ids, number of the first supervised token) of each row that was packed."""
    documents = []
    for row in packed:
        start = 0
        for length, group in zip(row["seq_lengths"], row["doc_groups"], strict=True):
            ids = row["input_ids"][start : start + length]
            labels = row["labels"][start : start + length]
            first = next((i for i, label in enumerate(labels) if label >= 0), 0)
            documents.append((data.groups[group][0], tuple(ids), first))
            start += length
    return documents


def _shares(available: Mapping[str, int], rows: int) -> dict[str, int]:
    """Return how many rows of each mode to draw: `rows` in all, in the shares that there are, but one
    at least.
    """
    total = sum(available.values())
    exact = {mode: min(rows, total) * count / total for mode, count in available.items()}
    counts = {mode: int(share) for mode, share in exact.items()}
    rest = min(rows, total) - sum(counts.values())
    for mode in sorted(exact, key=lambda mode: counts[mode] - exact[mode])[:rest]:
        counts[mode] += 1
    if sum(counts.values()) >= len(counts):
        for mode in [mode for mode, count in counts.items() if not count]:
            counts[max(counts, key=counts.__getitem__)] -= 1
            counts[mode] = 1
    return counts
