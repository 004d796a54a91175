"""Make ledgers: texts whose second half says again, in another order, what the first half said.

    The amber kettle weighs 4821 kilos.
    ...
    Again: the amber kettle weighs 4821 kilos.

A number that is said again is known from far before, if the model can look that far back.
"""

import argparse
import json
import random
from pathlib import Path

_COLORS = [
    "amber",
    "ash",
    "azure",
    "beige",
    "black",
    "blue",
    "brass",
    "bronze",
    "copper",
    "coral",
    "cream",
    "crimson",
    "dark",
    "dusty",
    "faded",
    "gold",
]
_COLORS += [
    "gray",
    "green",
    "ivory",
    "jade",
    "khaki",
    "lemon",
    "light",
    "lilac",
    "mauve",
    "navy",
    "olive",
    "orange",
    "pale",
    "peach",
    "pink",
    "plum",
]
_THINGS = [
    "anchor",
    "anvil",
    "barrel",
    "basket",
    "bell",
    "bench",
    "boiler",
    "bottle",
    "bucket",
    "cabinet",
    "candle",
    "carpet",
    "cask",
    "chair",
]
_THINGS += [
    "chest",
    "clock",
    "coffin",
    "compass",
    "crate",
    "cup",
    "desk",
    "door",
    "drum",
    "engine",
    "fan",
    "fence",
    "flag",
    "frame",
    "gate",
    "harp",
]
_THINGS += [
    "horn",
    "kettle",
    "ladder",
    "lamp",
    "lantern",
    "lock",
    "loom",
    "mast",
    "mill",
    "mirror",
    "oar",
    "oven",
    "pan",
    "pipe",
    "plow",
    "pump",
]


def ledger(facts: int, draw: random.Random) -> str:
    """Return a text of so many facts, each said twice."""
    names = draw.sample([f"{color} {thing}" for color in _COLORS for thing in _THINGS], facts)
    said = [f"the {name} weighs {draw.randrange(1000, 10000)} kilos." for name in names]
    first = [f"T{line[1:]}" for line in said]
    draw.shuffle(said)
    return "\n".join([*first, *(f"Again: {line}" for line in said)])


def main() -> None:
    """Write ledgers.jsonl."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--facts", type=int, required=True, help="of a row")
    settings = parser.parse_args()
    draw = random.Random(settings.seed)
    lines = [json.dumps({"text": ledger(settings.facts, draw)}) for _ in range(settings.rows)]
    (settings.out / "ledgers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
