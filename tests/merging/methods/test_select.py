"""Ranks without sorting the tensor, against sorting it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dualign.merging.methods.select import keep_ranks, values_at
from dualign.merging.methods.tensors import in_memory

from .slow import top

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
coarse = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0])


@settings(max_examples=60)
@given(arrays(np.float32, st.integers(1, 60), elements=floats | coarse), st.data())
def test_values_at_ranks_are_those_of_the_sorted_tensor(values, data):
    ranks = data.draw(st.lists(st.integers(0, values.size - 1), min_size=1, max_size=4))
    tensors = in_memory([values], block=7)
    ordered = np.sort(values)[::-1]
    found = values_at(tensors, tensors.inputs[0], ranks)
    assert found == [float(ordered[rank]) for rank in ranks]


@settings(max_examples=60)
@given(arrays(np.float32, st.integers(1, 60), elements=coarse), st.data())
def test_kept_ranks_are_exact_where_values_are_equal(values, data):
    first = data.draw(st.integers(0, values.size))
    last = data.draw(st.integers(first, values.size))
    table = values.reshape(-1, 1)
    tensors = in_memory([table], block=7)
    mask = keep_ranks(tensors, tensors.inputs[0], first, last)
    kept = np.concatenate([mask(a, b, values[a:b]) for a, b in tensors.ranges()])
    assert np.array_equal(kept, top(values, first, last).astype(bool))
