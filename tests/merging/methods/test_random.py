"""Random numbers belong to their element, whatever else is drawn."""

import numpy as np

from dualign.merging.methods.random import stream, uniform


def test_a_stretch_holds_the_numbers_of_its_elements():
    key = stream(3, 0, "w")
    every = uniform(key, 0, 1000)
    for start, stop in [(0, 1), (1, 2), (3, 9), (4, 8), (997, 1000), (5, 5)]:
        assert np.array_equal(uniform(key, start, stop), every[start:stop])


def test_seed_model_and_tensor_each_change_the_numbers():
    keys = {stream(0, 0, "a"), stream(1, 0, "a"), stream(0, 1, "a"), stream(0, 0, "b")}
    first = [float(uniform(key, 0, 1)[0]) for key in keys]
    assert len(set(first)) == 4


def test_numbers_are_uniform():
    numbers = uniform(stream(0, 0, "w"), 0, 200_000)
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert abs(counts - 10_000).max() < 500  # five standard deviations
