"""Balance of modes, of chosen and rejected (in tokens, because traces are long), and of verdicts."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dualign.data.conversation import MODES
from dualign.data.verdicts import VERDICTS, one_sided_modes, one_sided_verdicts
from dualign.doctor.findings import Finding, Severity

_MIN_MODE_SHARE = 0.1
"""A mode with less than this share of the supervised tokens is hardly learned."""
_MAX_LENGTH_RATIO = 2.0
"""Above this ratio of mean lengths, pairs teach length."""


@dataclass(kw_only=True, slots=True)
class PairTokens:
    """Supervised tokens of all chosen and of all rejected answers."""

    chosen: int = 0
    rejected: int = 0

    def add(self, chosen: int, rejected: int) -> None:
        self.chosen += chosen
        self.rejected += rejected


@dataclass(kw_only=True, slots=True)
class Verdicts:
    """Rated answers of each mode: how many are desirable, and how many aren't."""

    counts: Counter[tuple[str, bool]] = field(default_factory=Counter)

    def add(self, mode: str, desirable: bool) -> None:
        self.counts[mode, desirable] += 1

    def check(self) -> Iterator[Finding]:
        """Find answers that all have one verdict: of all rows, or of a mode."""
        if not self.counts:
            return
        modes = dict.fromkeys(mode for mode, _ in self.counts)
        by: list[dict[str, Any]] = [
            {
                "mode": mode,
                VERDICTS[0]: self.counts[mode, True],
                VERDICTS[1]: self.counts[mode, False],
            }
            for mode in modes
        ]
        total = {name: sum(entry[name] for entry in by) for name in VERDICTS}
        if message := one_sided_verdicts(total):
            yield Finding("one_verdict", message)
        for message in one_sided_modes({"by": by}):
            yield Finding("one_verdict", message, "warning")


def check_modes(by: Sequence[Mapping[str, Any]], *, trained: bool) -> Iterator[Finding]:
    """Find modes that are missing or rare in `by` of ROWS.

    `trained`: a stage trains on these rows alone.
    """
    rows, tokens = Counter[str](), Counter[str]()
    for group in by:
        rows[group["mode"]] += group["examples"]
        tokens[group["mode"]] += group["supervised_tokens"]
    present = [mode for mode in MODES if tokens[mode]]
    all_rows, all_tokens = sum(rows[mode] for mode in MODES), sum(tokens[mode] for mode in MODES)
    if len(present) == 1:
        severity: Severity = "warning" if trained else "info"
        yield Finding("one_mode", f"all {all_rows:,} rows are {present[0]}", severity)
    for mode in present if len(present) > 1 else ():
        if tokens[mode] < _MIN_MODE_SHARE * all_tokens:
            yield Finding(
                "mode_imbalance",
                f"{mode}: {rows[mode] / all_rows:.1%} of the rows, but "
                f"{tokens[mode] / all_tokens:.1%} of the supervised tokens "
                f"({tokens[mode]:,} of {all_tokens:,})",
            )


def check_pair_lengths(tokens: PairTokens) -> Iterator[Finding]:
    """Find pairs with one side much longer than the other."""
    longer = max(tokens.chosen, tokens.rejected)
    if longer > _MAX_LENGTH_RATIO * min(tokens.chosen, tokens.rejected):
        yield Finding(
            "length_bias",
            f"{tokens.chosen:,} tokens in the chosen answers, {tokens.rejected:,} in the rejected",
        )
