"""Methods give the same bits on other processors."""

import hashlib

import numpy as np

from dualign.merging.methods.random import stream
from dualign.merging.methods.table import METHODS
from dualign.merging.methods.tensors import in_memory, materialize
from tests.machines import printed

VALUES = {
    "weight": [0.5, 0.3, 0.4],
    "density": [0.5, 0.3, 0.4],
    "epsilon": [0.1, 0.1, 0.1],
    "t": 0.3,
    "select_topk": 0.3,
    "filter_wise": True,
}


def digests() -> str:
    """SHA-256 of each method's result, for a matrix, a long row and a vector."""
    random = np.random.default_rng(0)
    lines = []
    for name, method in METHODS.items():
        sha = hashlib.sha256()
        for shape in ((70, 130), (2, 3000), (257,)):
            count = method.max_models or 3
            base = random.standard_normal(shape).astype(np.float32)
            noise = random.standard_normal((count, *shape)).astype(np.float32) / 8
            tensors = in_memory(
                [base + part for part in noise],
                None if method.base == "none" else base,
                streams=[stream(0, i, "w") for i in range(count)],
            )
            given = {
                key: value[:count] if isinstance(value, list) else value
                for key, value in VALUES.items()
                if key in (method.per_model if isinstance(value, list) else method.global_)
            }
            combine = method.function(tensors, **method.arguments(given, count))
            merged = materialize(combine, shape)
            # Rounded as it is written: angles come from the machine's own sines.
            sha.update(merged.astype(np.float32 if name == "nuslerp" else np.float64).tobytes())
        lines.append(f"{name} {sha.hexdigest()[:12]}")
    return "\n".join(lines)


def test_every_method_gives_the_same_bits_on_other_processors() -> None:
    assert printed("tests.merging.methods.test_machines:digests") == {digests()}
