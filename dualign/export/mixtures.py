"""Types of GGUF files: which type each tensor of a file gets, by llama.cpp's rules.

Sensitive tensors get more bits: the output matrix, the value and down projections, and of those
the ones of the first and last layers. Rows whose width isn't a multiple of 256 can't have a type
with blocks of 256; they get a wider one with blocks of 32. The table holds for dense models.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_BLOCK = 256
_NARROW_BLOCK = 32
_HEAD, _EMBEDDING = "output.weight", "token_embd.weight"
_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.weight$")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where a tensor stands, and what is known of the model."""

    block: int
    blocks: int
    sharing: int
    """query heads that share a key head"""
    importance: bool
    """an importance matrix is used"""

    def always(self) -> bool:
        return True

    def first_two(self) -> bool:
        return self.block < 2

    def first_four(self) -> bool:
        return self.block < 4

    def first_sixteenth(self) -> bool:
        return self.block < self.blocks // 16

    def first_eighth(self) -> bool:
        return self.block < self.blocks // 8

    def first_eighth_guessed(self) -> bool:
        return self.first_eighth() and not self.importance

    def first_eighth_weighted(self) -> bool:
        return self.first_eighth() and self.importance

    def middle(self) -> bool:
        return self.blocks // 8 <= self.block < 7 * self.blocks // 8

    def more_bits(self) -> bool:
        """Of 16 blocks: 0, 1, 4, 7, 10, 13, 14 and 15."""
        return not self.middle() or (self.block - self.blocks // 8) % 3 == 2

    def shared(self) -> bool:
        return self.sharing >= 4


Rule = tuple[str, Callable[[_Place], bool]]
"""A type, and when a tensor gets it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Types of the tensors of a file; the first rule that holds decides, then `rest`."""

    rest: str
    rules: Mapping[str, tuple[Rule, ...]]
    """by what a tensor is called in its block"""
    head: str = "Q6_K"
    """of the output matrix, which may be the embedding, too"""
    embedding: str | None = None
    """of an embedding that isn't the output matrix; None: as the rest"""


def _mixture(
    rest: str, head: str = "Q6_K", embedding: str | None = None, **rules: str | Rule | list[Rule]
) -> Mixture:
    """Build a mixture; a rule that is a type alone always holds."""
    listed: dict[str, tuple[Rule, ...]] = {}
    for name, rule in rules.items():
        if isinstance(rule, str):
            listed[name] = ((rule, _Place.always),)
        else:
            listed[name] = tuple(rule) if isinstance(rule, list) else (rule,)
    return Mixture(rest=rest, rules=listed, head=head, embedding=embedding)


def _six_bits(rest: str) -> Mixture:
    return _mixture(rest, attn_v=("Q6_K", _Place.more_bits), ffn_down=("Q6_K", _Place.more_bits))


def _four_bits(rest: str) -> Mixture:
    return _mixture(
        rest, attn_v=("Q5_K", _Place.shared), ffn_down=("Q5_K", _Place.first_eighth_guessed)
    )


def _two_bits(rest: str, **rules: str) -> Mixture:
    return _mixture(
        rest,
        "Q5_K",
        "Q2_K",
        attn_v=[("Q4_K", _Place.shared), ("Q2_K", _Place.always)],
        ffn_down=("Q2_K", _Place.first_eighth),
        **rules,
    )


def _two_bits_more(rest: str) -> Mixture:
    return _mixture(
        rest,
        "Q5_K",
        "IQ3_S",
        attn_v=[("Q4_K", _Place.shared), ("IQ3_S", _Place.always)],
        ffn_down=("IQ3_S", _Place.first_eighth),
        attn_output="IQ3_S",
    )


MIXTURES: Mapping[str, Mixture] = {
    "q8_0": _mixture("Q8_0", "Q8_0"),
    "q6_k": _mixture("Q6_K"),
    "q5_k_m": _six_bits("Q5_K"),
    "q5_k_s": _mixture("Q5_K"),
    "q5_1": _mixture("Q5_1"),
    "q5_0": _mixture("Q5_0", ffn_down=("Q5_1", _Place.first_eighth_weighted)),
    "q4_k_m": _six_bits("Q4_K"),
    "q4_k_s": _mixture(
        "Q4_K", attn_v=("Q5_K", _Place.first_four), ffn_down=("Q5_K", _Place.first_eighth)
    ),
    "q4_1": _mixture("Q4_1"),
    "q4_0": _mixture("Q4_0", ffn_down=("Q4_1", _Place.first_eighth_weighted)),
    "iq4_nl": _four_bits("IQ4_NL"),
    "iq4_xs": _four_bits("IQ4_XS"),
    "q3_k_l": _mixture("Q3_K", attn_v="Q5_K", ffn_down="Q5_K", attn_output="Q5_K"),
    "q3_k_m": _mixture(
        "Q3_K",
        attn_v=[("Q5_K", _Place.first_two), ("Q4_K", _Place.always)],
        ffn_down=[("Q5_K", _Place.first_sixteenth), ("Q4_K", _Place.always)],
        attn_output="Q4_K",
    ),
    "q3_k_s": _mixture("Q3_K"),
    "iq3_m": _mixture(
        "IQ3_S", attn_v="Q4_K", ffn_down=("Q4_K", _Place.first_eighth), attn_output="Q4_K"
    ),
    "iq3_s": _mixture("IQ3_S", attn_v=("Q4_K", _Place.shared)),
    "iq3_xs": _mixture(
        "IQ3_S",
        attn_q="IQ3_XXS",
        attn_k="IQ3_XXS",
        attn_v=("Q4_K", _Place.shared),
        ffn_gate=("IQ3_XXS", _Place.middle),
        ffn_up=("IQ3_XXS", _Place.middle),
    ),
    "iq3_xxs": _mixture(
        "IQ3_XXS",
        "Q5_K",
        "IQ3_S",
        attn_q="IQ2_S",
        attn_k="IQ2_S",
        attn_v=("Q4_K", _Place.shared),
        attn_output="IQ3_S",
    ),
    "q2_k": _mixture(
        "Q2_K",
        attn_v=[("Q4_K", _Place.shared), ("Q3_K", _Place.always)],
        ffn_down="Q3_K",
        attn_output="Q3_K",
    ),
    "q2_k_s": _mixture(
        "Q2_K", attn_v=("Q4_K", _Place.shared), ffn_down=("Q4_K", _Place.first_eighth)
    ),
    "iq2_m": _two_bits_more("IQ2_S"),
    "iq2_s": _two_bits_more("IQ2_XS"),
    "iq2_xs": _two_bits("IQ2_XS"),
    "iq2_xxs": _two_bits("IQ2_XXS"),
    "iq1_m": _two_bits("IQ1_M", attn_output="IQ2_XXS"),
    "iq1_s": _two_bits("IQ1_S", attn_output="IQ2_XXS"),
}
"""Name of a file's type -> types of its tensors, from many bits to few."""

_NARROW = {"Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0", "Q3_K": "Q4_0", "Q2_K": "Q4_0"}
_GARBAGE_WITHOUT_IMPORTANCE = frozenset({"IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"})
_LARGE = 80
"""Blocks of the 70B models, whose small value projections get more bits."""


def types_of(
    shapes: Mapping[str, tuple[int, ...]], type: str, *, importance: bool = False
) -> dict[str, str]:
    """Return the type of each tensor that is quantized, by its GGUF name.

    Args:
        importance: an importance matrix is used, with which llama.cpp mixes some types otherwise.
    """
    mixture = MIXTURES[type]
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    blocks = 1 + max(_block(name) for name in shapes)
    sharing = _sharing(matrices)
    head = _HEAD if _HEAD in matrices else _EMBEDDING
    types = {}
    for name, (_, width) in matrices.items():
        if name == head:
            types[name] = _fitting("Q8_0" if width % _BLOCK else mixture.head, width)
            continue
        place = _Place(block=_block(name), blocks=blocks, sharing=sharing, importance=importance)
        types[name] = _fitting(_type_at(name, place, mixture), width)
    return types


def needing_importance(types: Mapping[str, str], type: str) -> list[str]:
    """List the tensors that are garbage without an importance matrix, as llama.cpp has it."""
    poor = _GARBAGE_WITHOUT_IMPORTANCE | ({"Q2_K"} if type == "q2_k_s" else set())
    return [
        name for name, kind in types.items() if kind in poor and name not in (_HEAD, _EMBEDDING)
    ]


def _type_at(name: str, place: _Place, mixture: Mixture) -> str:
    match = _NAME.match(name)
    if match is None:
        return mixture.embedding or mixture.rest
    rules = mixture.rules.get(match[2], ())
    type = next((type for type, holds in rules if holds(place)), mixture.rest)
    large = place.blocks == _LARGE and place.sharing > 1
    if match[2] == "attn_v" and large and not mixture.rest.startswith(("IQ1", "IQ2")):
        return "Q5_K" if type in ("Q3_K", "Q4_K") else type
    return type


def _fitting(type: str, width: int) -> str:
    """Return `type`, or the nearest type that rows of this width can have."""
    if width % _NARROW_BLOCK:
        return "F16"
    wide = type in _NARROW or (type.startswith("IQ") and type != "IQ4_NL")
    return _NARROW.get(type, "IQ4_NL") if wide and width % _BLOCK else type


def _block(name: str) -> int:
    match = _NAME.match(name)
    return int(match[1]) if match else -1


def _sharing(matrices: Mapping[str, tuple[int, ...]]) -> int:
    queries, keys = (matrices[f"blk.0.attn_{part}.weight"][0] for part in ("q", "k"))
    return queries // keys
