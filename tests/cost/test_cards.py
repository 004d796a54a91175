"""The table of cards, and what `--on` may say."""

import pytest

from dualign.cost.cards import card_of_device, cards, cluster
from dualign.errors import ConfigError

REQUIRED = """b200 h200 h100 h100-pcie a100 a100-40 l40s l4 a10g 4090 3090 5090 t4 mi300x"""


def test_the_table_has_every_card_with_a_source_and_figures_that_can_be() -> None:
    names = [name for card in cards() for name in card.names]
    assert len(set(names)) == len(names)
    assert set(REQUIRED.split()) <= set(names)
    for card in cards():
        assert card.source.startswith("https://")
        assert 15 < card.memory_gb < 300 and 200 < card.bandwidth_gbs < 10_000
        assert card.float32_tflops < card.half_tflops < 3000
        assert 0.3 < card.efficiency < card.matmul_share < 1
        assert card_of_device(" ".join(card.device)) is card


@pytest.mark.parametrize(
    ("text", "nodes", "per_node", "name"),
    [
        ("H100", 1, 1, "H100 SXM 80 GB"),
        ("8xH100", 1, 8, "H100 SXM 80 GB"),
        ("2x8xh100-sxm", 2, 8, "H100 SXM 80 GB"),
        ("16xH100", 2, 8, "H100 SXM 80 GB"),
        ("8 x NVIDIA A100 40GB", 1, 8, "A100 SXM 40 GB"),
        ("4090", 1, 1, "GeForce RTX 4090 24 GB"),
        ("2x4090", 1, 2, "GeForce RTX 4090 24 GB"),
        ("3 * rtx 3090", 1, 3, "GeForce RTX 3090 24 GB"),
    ],
)
def test_forms_that_are_read(text: str, nodes: int, per_node: int, name: str) -> None:
    read = cluster(text)
    assert (read.nodes, read.per_node, read.card.name) == (nodes, per_node, name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8xH1000", r"unknown card 'H1000' \(did you mean h100\?\); known cards: b200, "),
        ("8xabacus", "unknown card 'abacus'; known cards"),
        ("H100:8", "write the number first: 8xH100"),
        ("12xH100", "12 don't fill nodes: write NODESxCARDSxCARD, such as 2x6xH100"),
        ("0xH100", "expected 1 card or more"),
        ("", "expected CARDSxCARD, such as 8xH100"),
    ],
)
def test_forms_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cluster(text)


def test_of_several_rows_a_device_is_the_one_that_names_most_of_it() -> None:
    names = {
        "NVIDIA A100-SXM4-80GB": "A100 SXM 80 GB",
        "NVIDIA A100-SXM4-40GB": "A100 SXM 40 GB",
        "NVIDIA A100 80GB PCIe": "A100 PCIe 80 GB",
        "NVIDIA H100 PCIe": "H100 PCIe 80 GB",
        "NVIDIA H100 80GB HBM3": "H100 SXM 80 GB",
        "Tesla T4": "T4 16 GB",
    }
    for device, name in names.items():
        card = card_of_device(device)
        assert card is not None and card.name == name
    assert card_of_device("NVIDIA L") is None


def test_a_ring_beyond_a_node_is_as_fast_as_its_network() -> None:
    """8 cards with 400 Gbit/s each: 400 GB/s for a node, below NVLink's 450."""
    nodes = cluster("2x8xH100")
    assert nodes.link_rate(8) == pytest.approx(0.8 * 450e9)
    assert nodes.link_rate(16) == pytest.approx(0.8 * 400e9)
    assert cluster("2x8xL4").link_rate(16) == pytest.approx(0.8 * 12.5e9)


def test_float32_has_no_tensor_cores() -> None:
    card = cluster("H100").card
    assert card.rate("float32") == card.attention_rate("float32")
    assert card.rate("bfloat16") > 5 * card.rate("float32")
