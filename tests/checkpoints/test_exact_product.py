"""The product of a fold: the same bits whatever computes it, and as exact as it says."""

import hashlib

import numpy as np
import pytest

from dualign.checkpoints.exact_product import ExactProduct
from tests.machines import printed, settings


def factors(rows: int, rank: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Float32 factors, as an adapter has them, over several orders of magnitude."""
    random = np.random.default_rng(rank)
    spread = np.exp(random.standard_normal((rows, rank)))
    left = (random.standard_normal((rows, rank)) * spread).astype(np.float32).astype(np.float64)
    right = random.standard_normal((rank, columns)).astype(np.float32).astype(np.float64)
    return left, 1.7 * right


@pytest.mark.parametrize("rank", [1, 2, 8, 16, 100, 300])
def test_any_stretch_of_rows_is_that_of_the_whole(rank: int) -> None:
    left, right = factors(75, rank, 130)
    product = ExactProduct(lambda start, stop: left[start:stop], right)
    whole = product.rows(0, 75)
    assert whole.shape == (75, 130)
    for height in (1, 2, 7, 32, 33, 64):
        cuts = [product.rows(row, min(row + height, 75)) for row in range(0, 75, height)]
        assert np.array_equal(np.concatenate(cuts), whole)
    for first, last in ((0, 1), (129, 130), (17, 90)):
        part = ExactProduct(lambda start, stop: left[start:stop], right[:, first:last])
        assert np.array_equal(part.rows(0, 75), whole[:, first:last])


@pytest.mark.parametrize(("rank", "bits"), [(1, 49), (8, 46), (16, 44), (64, 41), (300, 36)])
def test_the_error_is_a_small_part_of_the_largest_products(rank: int, bits: int) -> None:
    left, right = factors(40, rank, 50)
    found = ExactProduct(lambda start, stop: left[start:stop], right).rows(0, 40)
    exact = left.astype(np.longdouble) @ right.astype(np.longdouble)
    largest = np.abs(left).max(axis=1, keepdims=True) * np.abs(right).max(axis=0)
    assert (np.abs(found - exact) / largest).max() < 2.0**-bits


def test_small_whole_numbers_zeros_and_huge_rows_are_exact() -> None:
    left = np.array([[1.0, -2.0], [0.0, 0.0], [3 * 2.0**100, 0.0], [-0.0, 5 * 2.0**-100]])
    right = np.array([[3.0, 0.0, -0.0], [4.0, 1.0, 2.0]])
    found = ExactProduct(lambda start, stop: left[start:stop], right).rows(0, 4)
    assert np.array_equal(found, left @ right)
    assert not np.signbit(found[1]).any()


def digest() -> str:
    """SHA-256 of products of several ranks, in blocks of several heights."""
    sha = hashlib.sha256()
    for rank in (1, 3, 16, 64, 300):
        left, right = factors(70, rank, 260)
        product = ExactProduct(lambda start, stop, left=left: left[start:stop], right)
        for height in (1, 16, 70):
            sha.update(product.rows(5, 5 + min(height, 65)).tobytes())
    return sha.hexdigest()


def plain() -> str:
    """SHA-256 of a product as BLAS computes it."""
    left, right = factors(70, 16, 260)
    return hashlib.sha256((left @ right).tobytes()).hexdigest()


def test_other_processors_and_threads_give_the_same_bits() -> None:
    assert printed("tests.checkpoints.test_exact_product:digest") == {digest()}


def test_the_kernels_of_other_processors_are_tried() -> None:
    """Where OpenBLAS chooses by processor, a plain product tells its kernels apart."""
    if len(settings()) > 4:
        assert len(printed("tests.checkpoints.test_exact_product:plain")) > 1
