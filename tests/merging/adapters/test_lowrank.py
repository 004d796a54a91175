"""Low-rank approximations against numpy's SVD of the whole matrix, and limits worked by hand."""

import tracemalloc

import numpy as np
import pytest

from dualign.errors import MergeError
from dualign.merging.adapters import lowrank
from dualign.merging.adapters.lowrank import LowRank, Truncation, approximate, truncate


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def product(found: LowRank) -> np.ndarray:
    return found.B_OR @ found.A_RI


def best_error(matrix: np.ndarray, rank: int) -> float:
    return float(np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:]))


@pytest.mark.parametrize("how", ["factors", "whole"])
def test_a_diagonal_loses_its_smallest_number(how: str) -> None:
    D, cut = np.diag([3.0, -2.0, 1.0]), Truncation(rank=2)
    found = truncate(D, np.eye(3), cut) if how == "factors" else approximate(D, cut)
    np.testing.assert_allclose(product(found), np.diag([3.0, -2.0, 0.0]), atol=1e-15)
    assert found.error == pytest.approx(1.0)
    assert found.norm == pytest.approx(14**0.5)


@pytest.mark.parametrize(("energy", "rank"), [(0.01, 1), (0.64, 1), (0.65, 2), (1.0, 2)])
def test_energy_keeps_as_few_ranks_as_hold_it(energy: float, rank: int) -> None:
    # squares 16 and 9: the first holds 0.64
    for found in (
        truncate(np.diag([3.0, 4.0]), np.eye(2), Truncation(energy=energy)),
        approximate(np.diag([3.0, 4.0]), Truncation(energy=energy)),
    ):
        assert len(found.A_RI) == rank


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_both_ways_are_as_near_as_can_be(shape: tuple[int, int], rank: int) -> None:
    B, A = noise(shape[0], 12), noise(12, shape[1], seed=1)
    expected = best_error(B @ A, rank)
    for found in (truncate(B, A, Truncation(rank=rank)), approximate(B @ A, Truncation(rank=rank))):
        assert np.linalg.norm(B @ A - product(found)) == pytest.approx(expected, abs=1e-10)
        assert found.error == pytest.approx(expected, abs=1e-10)
        assert found.norm == pytest.approx(np.linalg.norm(B @ A))


def test_more_ranks_than_there_are_change_nothing() -> None:
    B, A = noise(9, 4), noise(4, 7, seed=1)
    found = truncate(B, A, Truncation(rank=100))
    assert found.A_RI.shape == (4, 7)
    np.testing.assert_allclose(product(found), B @ A, atol=1e-14)


def test_factors_wider_than_the_matrix_are_cut_to_its_sides() -> None:
    B, A = noise(5, 20), noise(20, 6, seed=1)
    found = truncate(B, A, Truncation(rank=20))
    assert found.A_RI.shape == (5, 6)
    np.testing.assert_allclose(product(found), B @ A, atol=1e-13)


def test_no_change_is_one_rank_of_zeros() -> None:
    for found in (
        truncate(np.zeros((4, 2)), noise(2, 3), Truncation(rank=2)),
        approximate(np.zeros((4, 3)), Truncation(energy=0.9)),
    ):
        assert found.A_RI.shape == (1, 3)
        assert not product(found).any()
        assert found.error == found.norm == 0


def test_large_layers_are_within_a_thousandth_of_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowrank, "EXACT_UP_TO", 50)
    D = noise(300, 400)  # no decay at all, the hardest case
    found, again, other = (approximate(D, Truncation(rank=16), key=key) for key in (1, 1, 2))
    assert found.error == pytest.approx(best_error(D, 16), rel=1e-3)
    assert found.error == pytest.approx(np.linalg.norm(D - product(found)))
    assert np.array_equal(product(found), product(again))
    assert not np.array_equal(product(found), product(other))


def test_the_product_of_the_factors_is_never_formed() -> None:
    side = 20_000  # the product would take 3.2 GB
    B, A = noise(side, 8), noise(8, side, seed=1)
    tracemalloc.start()
    found = truncate(B, A, Truncation(rank=4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6
    # the values of a product of Gaussian factors: 1 - sum of the kept squares, from the small core alone
    core = np.linalg.qr(B)[1] @ np.linalg.qr(A.T)[1].T
    assert found.error == pytest.approx(best_error(core, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "a rank or an energy"),
        ({"rank": 1, "energy": 0.5}, "not both"),
        ({"rank": 0}, "rank 0: expected 1 or more"),
        ({"energy": 1.5}, "energy 1.5: expected a share above 0 and up to 1"),
    ],
)
def test_a_cut_that_cannot_be_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(MergeError, match=message):
        Truncation(**settings)  # type: ignore[arg-type]
