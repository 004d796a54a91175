"""What the start model of a preference stage says of its pairs, for the plan.

`dualign plan --measure` asks the model, and the answer is kept in dualign's cache under the model,
the pairs and the types; later plans read it, and warn where it contradicts the stage's loss.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import islice
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

from dualign.cost.remembered import key_of, remember, remembered
from dualign.data.prepare import PairData
from dualign.training.precision import resolved

_FILE = "start-margins.json"
_PAIRS = 32
_SECONDS = 30.0  # no pair begins after so many
_PACKAGES = ("torch", "transformers")


@runtime_checkable
class _Judged(Protocol):
    """A stage's dataclass that says what margins of its start model mean for its loss."""

    def start_words(self, margins: Sequence[float]) -> tuple[str, ...]: ...


@runtime_checkable
class _Judging(Protocol):
    """A trainer that yields the margins of its model."""

    def start_margins(self, pairs: Sequence[Mapping[str, Any]]) -> Iterator[float]: ...


def measure_margins(config: Any, data: PairData, trainer: object) -> None:
    """Ask the trainer's model for its margins on the first pairs, and remember them."""
    if not isinstance(trainer, _Judging):
        return
    end = perf_counter() + _SECONDS
    margins = []
    for margin in trainer.start_margins(_first_pairs(data)):
        margins.append(margin)
        if perf_counter() > end:
            break
    remember(_FILE, _key(config, data), {"margins": margins, "stage": config.name})


def margin_notes(config: Any, data: PairData) -> tuple[str, ...]:
    """Return the remembered figures in words and the warning, or how to get them."""
    if not isinstance(config, _Judged):
        return ()
    margins = remembered(_FILE, _key(config, data)).get("margins")
    if not margins:
        return (
            "what the start model says of the pairs isn't known yet: dualign plan --measure asks it",
        )
    return config.start_words(margins)


def _first_pairs(data: PairData) -> list[Mapping[str, Any]]:
    return list(islice(data.train, _PAIRS))


def _key(config: Any, data: PairData) -> str:
    from dualign.models.loading import identity

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    facts = {
        "model": f"{identity(config.model)}@{config.revision}",
        "types": (resolved(config).dtype, config.quantization),
        "pairs": [[pair[name] for name in names] for pair in _first_pairs(data)],
        "versions": {package: version(package) for package in _PACKAGES},
    }
    return key_of(facts)
