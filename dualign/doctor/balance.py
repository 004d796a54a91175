"""How the modes and the two sides of pairs share what is trained: in tokens, since traces are long."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualign.data.conversation import MODES
from dualign.doctor.findings import Fault, Severity

LEAST_SHARE = 0.1
"""Below this share of the supervised tokens a mode is hardly learnt."""
MOST_BIAS = 2.0
"""Above this ratio of mean lengths, pairs teach length."""


@dataclass(kw_only=True, slots=True)
class Sides:
    """Counts the supervised tokens of all chosen and of all rejected answers."""

    chosen: int = 0
    rejected: int = 0

    def add(self, chosen: int, rejected: int) -> None:
        self.chosen += chosen
        self.rejected += rejected


def balance_faults(by: Sequence[Mapping[str, Any]], *, trained: bool) -> Iterator[Fault]:
    """Modes that are missing or nearly so, in an account's groups. `trained` says that a stage trains on
    these rows alone.
    """
    rows, tokens = Counter[str](), Counter[str]()
    for group in by:
        rows[group["mode"]] += group["examples"]
        tokens[group["mode"]] += group["supervised_tokens"]
    present = [mode for mode in MODES if tokens[mode]]
    all_rows, all_tokens = sum(rows[mode] for mode in MODES), sum(tokens[mode] for mode in MODES)
    if len(present) == 1:
        severity: Severity = "warning" if trained else "info"
        yield Fault("one_mode", f"all {all_rows:,} rows are {present[0]}", severity)
    for mode in present if len(present) > 1 else ():
        if tokens[mode] < LEAST_SHARE * all_tokens:
            yield Fault(
                "mode_imbalance",
                f"{mode}: {rows[mode] / all_rows:.1%} of the rows, but "
                f"{tokens[mode] / all_tokens:.1%} of the supervised tokens "
                f"({tokens[mode]:,} of {all_tokens:,})",
            )


def side_faults(sides: Sides) -> Iterator[Fault]:
    """Pairs of which one side is much longer."""
    longer = max(sides.chosen, sides.rejected)
    if longer > MOST_BIAS * min(sides.chosen, sides.rejected):
        yield Fault(
            "length_bias",
            f"{sides.chosen:,} tokens in the chosen answers, {sides.rejected:,} in the rejected",
        )
