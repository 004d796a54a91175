"""Which source and mode the next row of a stream comes from, so that their tokens keep to the shares.

Whatever is furthest behind its share comes next: of all pairs of a source and a mode that rows may
have, the one whose deficits in tokens add up to most. Shares of sources and of modes are both met
this way if any choice meets them (it is the max-weight rule of Tassiulas and Ephremides, 1992), and
at every moment to within some rows.

Shares 0.7, 0.3 after 100 tokens, of which 60 and 40: deficits 10 and -10, so the first comes next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dualign.data.config import DataConfig
from dualign.data.conversation import MODES, PLAIN_TEXT
from dualign.errors import DataError

_ANY = ""
"""In place of a mode where the recipe doesn't weigh modes."""
Choice = tuple[int, str]
"""(source, mode)"""


@dataclass(kw_only=True)
class Mixing:
    """The shares of sources and modes, and the tokens that they got so far.

    `dry`: choices that a source has shown no row for, until it shows one.
    """

    labels: Sequence[str]
    shares: Sequence[float]
    modes: Mapping[str, float]
    choices: Sequence[Choice]
    tokens: list[int]
    mode_tokens: dict[str, int]
    dry: set[Choice] = field(default_factory=set)

    def next(self) -> Choice:
        """Return the source and the mode of the next row.

        Raises:
            DataError: no source has rows of a mode that is to have a share.
        """
        left = [choice for choice in self.choices if choice not in self.dry]
        for mode, share in self.modes.items():
            if share > 0 and not any(mode == of for _, of in left):
                named = ", ".join(self.labels[source] for source, of in self.choices if of == mode)
                raise DataError(
                    f"mix: {mode} is to have {share:g} of the tokens, but no row that is kept is "
                    f"{mode} (sources: {named or ', '.join(self.labels)})"
                )
        for source, label in enumerate(self.labels):
            if not any(source == of for of, _ in left):
                raise DataError(f"source {label}: holds no row of a mode that mix gives a share")
        total = sum(self.tokens)

        def behind(choice: Choice) -> float:
            source, mode = choice
            deficit = self.shares[source] * total - self.tokens[source]
            return deficit + self.modes[mode] * total - self.mode_tokens[mode]

        return max(left, key=behind)

    def count(self, choice: Choice, tokens: int) -> None:
        """Count the tokens of a row that was taken."""
        source, mode = choice
        self.tokens[source] += tokens
        self.mode_tokens[mode] += tokens

    def key(self, mode: str, label: str) -> str:
        """Return where a row of this mode waits.

        Raises:
            DataError: raw text where modes have shares.
        """
        if _ANY in self.modes:
            return _ANY
        if mode == PLAIN_TEXT:
            raise DataError(
                f"source {label}: data.mix is given, and raw text has no mode that it could weigh in a "
                "stream. Say its mode (`mode` of the source), or remove mix"
            )
        return mode

    def state(self) -> dict[str, Any]:
        return {
            "tokens": list(self.tokens),
            "mode_tokens": dict(self.mode_tokens),
            "dry": sorted(self.dry),
        }

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Mix on from what `state` returned."""
        self.tokens, self.mode_tokens = list(state["tokens"]), dict(state["mode_tokens"])
        self.dry = {(source, mode) for source, mode in state["dry"]}


def mixing_for(data: DataConfig, labels: Sequence[str]) -> Mixing:
    """Return the shares of the sources that are trained on; one without gets what is left.

    Raises:
        DataError: the modes that sources say don't allow the shares of `mix`.
    """
    rest = 1 - sum(source.share or 0.0 for source in data.sources)
    shares = [rest if source.share is None else source.share for source in data.sources]
    modes: dict[str, float] = {_ANY: 1.0}
    if data.mix is not None:
        modes = {mode: data.mix.get(mode, 0.0) for mode in MODES}
    _check(data, shares, modes)
    choices = [
        (number, mode)
        for number, source in enumerate(data.sources)
        for mode, share in modes.items()
        if share > 0 and (mode == _ANY or source.mode in ("row", mode))
    ]
    return Mixing(
        labels=labels,
        shares=shares,
        modes=modes,
        choices=choices,
        tokens=[0] * len(shares),
        mode_tokens=dict.fromkeys(modes, 0),
    )


def _check(data: DataConfig, shares: Sequence[float], modes: Mapping[str, float]) -> None:
    for mode, share in modes.items():
        pairs = list(zip(data.sources, shares, strict=True))
        least = sum(part for source, part in pairs if source.mode == mode)
        most = sum(part for source, part in pairs if source.mode in ("row", mode))
        if mode != _ANY and not least - 1e-6 <= share <= most + 1e-6:
            raise DataError(
                f"mix and the shares of the sources can't both be had: {mode} is to have {share:g} of "
                f"the tokens, and by their sources they have {least:g} to {most:g}. Change one of them."
            )
