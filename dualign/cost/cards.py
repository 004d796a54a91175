"""The table of cards (cards.yaml), and `--on`: so many of one card, on so many nodes."""

import difflib
import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

import yaml

from dualign.errors import ConfigError
from dualign.models.device import Device

# Bytes that layers move beside their products, for each operation of these products: norms, activations,
# casts, small kernels. Fitted to the throughputs of docs/scale.md, on cards whose memory differs by 2.
_TRAFFIC = 0.0035
_MATMUL_SHARE = 0.8
# Of a link's rate, what collectives reach: 0.78 to 0.82 of NVLink, measured with rings (ml-engineering, network).
_LINK_SHARE = 0.8
_FORM = re.compile(r"(?:(\d+)\s*[xX*]\s*)?(?:(\d+)\s*[xX*]\s*)?(.+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A row of the table; figures are those of the data sheet."""

    name: str
    names: tuple[str, ...]
    device: tuple[str, ...]
    memory_gb: float
    bandwidth_gbs: float
    half_tflops: float
    """of bfloat16; of float16 where there is no bfloat16"""
    bfloat16: bool = True
    float32_tflops: float
    matmul_share: float = _MATMUL_SHARE
    attention_share: float | None = None
    """of half_tflops, in the kernels of attention; None: as the layers' products"""
    link: str
    link_gbs: float
    node: int
    network_gbit: float
    source: str

    @property
    def memory(self) -> float:
        """Bytes. A gigabyte counts as 10^9, though most cards have 7 % more: that is left to fragments."""
        return self.memory_gb * 1e9

    @property
    def efficiency(self) -> float:
        """Share of the half-precision rate that a training reaches in its layers.

        A layer takes the time of its products, at the largest rate that was measured for any, and of
        its other passes through memory: 1 / (1 / m + traffic x rate / bandwidth).
        """
        traffic = _TRAFFIC * self.half_tflops * 1e12 / (self.bandwidth_gbs * 1e9)
        return 1 / (1 / self.matmul_share + traffic)

    @property
    def device_kind(self) -> Device:
        return Device(kind="cuda", bfloat16=self.bfloat16)

    def rate(self, arithmetic: str) -> float:
        """Return the operations per second of the layers.

        Without tensor cores for float32, and for bfloat16 where torch emulates it.
        """
        if not self._in_halves(arithmetic):
            return self.matmul_share * self.float32_tflops * 1e12
        return self.efficiency * self.half_tflops * 1e12

    def attention_rate(self, arithmetic: str) -> float:
        """Return the operations per second of attention's kernels."""
        if not self._in_halves(arithmetic) or self.attention_share is None:
            return self.rate(arithmetic)
        return self.attention_share * self.half_tflops * 1e12

    def _in_halves(self, arithmetic: str) -> bool:
        return arithmetic == "float16" or (arithmetic == "bfloat16" and self.bfloat16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Cards of one kind, on nodes that are alike."""

    card: Card
    nodes: int = 1
    per_node: int = 1
    notes: tuple[str, ...] = field(default=())

    @property
    def cards(self) -> int:
        return self.nodes * self.per_node

    def __str__(self) -> str:
        nodes = f"{self.nodes} nodes of " if self.nodes > 1 else ""
        return f"{nodes}{self.per_node} x {self.card.name}"

    def link_rate(self, world: int) -> float:
        """Return the bytes per second that a card of `world` sends in a ring.

        Beyond a node as many rings run as it has cards, each through the network of another card: the
        slower of a link and the node's whole network counts.
        """
        link = self.card.link_gbs * 1e9
        if world > self.per_node:
            link = min(link, self.per_node * self.card.network_gbit / 8 * 1e9)
        return _LINK_SHARE * link


@cache
def cards() -> tuple[Card, ...]:
    """Return the rows of the table."""
    text = files("dualign.cost").joinpath("cards.yaml").read_text(encoding="utf-8")
    rows = yaml.safe_load(text)
    return tuple(
        Card(**{**row, "names": tuple(row["names"]), "device": tuple(row["device"])})
        for row in rows
    )


def card_of_device(name: str) -> Card | None:
    """Return the card by the name that its driver gives; None if the table doesn't have it."""
    words = re.findall(r"[A-Za-z0-9]+", name)
    fitting = [card for card in cards() if set(card.device) <= set(words)]
    return max(fitting, key=lambda card: len(card.device), default=None)


def cluster(text: str) -> Cluster:
    """Read `--on`: CARD, CARDSxCARD, or NODESxCARDSxCARD, such as 8xH100 and 2x8xH100.

    Raises:
        ConfigError: no such form, an unknown card, or cards that don't fill nodes.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"--on: expected CARDSxCARD, such as 8xH100 or 2x8xH100; found {text!r}")
    first, second, name = match.groups()
    turned = re.fullmatch(r"(.+?)\s*[xX*:]\s*(\d+)", name)
    if turned and not (first or second):
        raise ConfigError(f"--on: {text}: write the number first: {turned[2]}x{turned[1]}")
    card = _card_named(name)
    counts = [int(count) for count in (first, second) if count]
    if 0 in counts:
        raise ConfigError(f"--on: expected 1 card or more, found {text!r}")
    if len(counts) == 2:
        return Cluster(card=card, nodes=counts[0], per_node=counts[1], notes=_wide(card, counts[1]))
    count = counts[0] if counts else 1
    if count <= card.node or card.node == 1:
        return Cluster(card=card, per_node=count)
    if count % card.node:
        raise ConfigError(
            f"--on: {text}: a usual node has {card.node} cards, and {count} don't fill nodes: "
            f"write NODESxCARDSxCARD, such as 2x{-(-count // 2)}x{name}"
        )
    nodes = count // card.node
    note = f"{count} cards are taken as {nodes} nodes of {card.node}"
    return Cluster(card=card, nodes=nodes, per_node=card.node, notes=(note,))


def _card_named(name: str) -> Card:
    """Return the card that a user means.

    Raises:
        ConfigError: none has this name.
    """
    known = {_plain(text): card for card in cards() for text in (*card.names, card.name)}
    if card := known.get(_plain(name)):
        return card
    close = difflib.get_close_matches(_plain(name), known, n=1, cutoff=0.5)
    hint = f" (did you mean {known[close[0]].names[0]}?)" if close else ""
    names = ", ".join(card.names[0] for card in cards())
    raise ConfigError(f"--on: unknown card {name!r}{hint}; known cards: {names}")


def _wide(card: Card, per_node: int) -> tuple[str, ...]:
    if per_node <= max(card.node, 8):
        return ()
    return (f"a usual node has {card.node} cards of this kind, not {per_node}",)


def _plain(name: str) -> str:
    text = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"^(nvidia|amd|instinct)+", "", text)
