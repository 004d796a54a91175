"""The methods on arrays: hand-worked values, the slow versions of slow.py, limits, any block size."""

import numpy as np
import pytest

from dualign.errors import MergeError
from dualign.merging.methods.random import stream, uniform
from dualign.merging.methods.table import METHODS
from dualign.merging.methods.tensors import in_memory, materialize

from . import slow

SHAPE = (6, 10)
KEYS = tuple(stream(0, i, "w") for i in range(3))
ONE = [1.0, 1.0, 1.0]


def make(shape=SHAPE, *, seed=0, coarse=False):
    """A base and three fine-tunes of it, as float32; `coarse`: their changes take few values."""
    generator = np.random.default_rng(seed)
    base = generator.normal(0, 1, shape)
    changes = [generator.normal(0, 0.3, shape) for _ in range(3)]
    if coarse:
        base, changes = np.round(base, 1), [np.round(change * 4) / 4 for change in changes]
    return base.astype(np.float32), [(base + change).astype(np.float32) for change in changes]


def merged(method, inputs, base=None, *, block=20, **parameters):
    tensors = in_memory(inputs, base, streams=KEYS, block=block)
    arguments = METHODS[method].arguments(parameters, len(inputs))
    combine = METHODS[method].function(tensors, **arguments)
    return materialize(combine, inputs[0].shape, block=block)


def exact(*arrays):
    return [array.astype(np.float64) for array in arrays]


BASE, TUNED = make()
COARSE_BASE, COARSE = make(coarse=True)
B, X = BASE.astype(np.float64), exact(*TUNED)
CB, CX = COARSE_BASE.astype(np.float64), exact(*COARSE)
W = [0.5, 0.3, 0.4]
D = [0.5, 0.7, 0.2]


def masks(changed, base, densities, count=lambda d, n: max(1, int(d * n))):
    n = base.size
    return [slow.top(x - base, 0, count(d, n)) for x, d in zip(changed, densities, strict=True)]


def crumbs(changed, base, densities, gammas):
    found, n = [], base.size
    for x, d, g in zip(changed, densities, gammas, strict=True):
        kept = int(d * n)
        smallest = max(0, n - kept - int(g * n))
        found.append(slow.top(x - base, n - smallest - kept, n - smallest))
    return found


CASES = {
    "linear": (
        lambda: merged("linear", TUNED, weight=W),
        lambda: sum(w * x for w, x in zip(W, X, strict=True)) / sum(W),
    ),
    "linear, not normalized": (
        lambda: merged("linear", TUNED, weight=W, normalize=False),
        lambda: sum(w * x for w, x in zip(W, X, strict=True)),
    ),
    "slerp": (
        lambda: merged("slerp", TUNED[1:2], TUNED[0], t=0.3),
        lambda: slow.slerp(X[0], X[1], 0.3),
    ),
    "slerp of opposites": (
        lambda: merged("slerp", [1 - TUNED[0]], TUNED[0], t=0.3),
        lambda: slow.slerp(X[0], *exact(1 - TUNED[0]), 0.3),
    ),
    "nuslerp": (
        lambda: merged("nuslerp", TUNED[:2], weight=[0.6, 0.2]),
        lambda: slow.nuslerp(X[0], X[1], 0.6, 0.2),
    ),
    "nuslerp of changes": (
        lambda: merged("nuslerp", TUNED[:2], BASE, weight=[0.6, 0.2]),
        lambda: slow.nuslerp(X[0], X[1], 0.6, 0.2, base=B),
    ),
    "nuslerp by row": (
        lambda: merged("nuslerp", TUNED[:2], weight=[0.6, 0.2], nuslerp_flatten=False),
        lambda: slow.nuslerp(X[0], X[1], 0.6, 0.2, axis=-1),
    ),
    "nuslerp by column": (
        lambda: merged(
            "nuslerp",
            TUNED[:2],
            BASE,
            weight=[0.6, 0.2],
            nuslerp_flatten=False,
            nuslerp_row_wise=True,
        ),
        lambda: slow.nuslerp(X[0], X[1], 0.6, 0.2, axis=0, base=B),
    ),
    "multislerp": (
        lambda: merged("multislerp", TUNED, weight=W),
        lambda: slow.multislerp(X, W),
    ),
    "multislerp of changes": (
        lambda: merged("multislerp", TUNED, BASE, weight=W),
        lambda: slow.multislerp(X, W, B),
    ),
    "karcher": (lambda: merged("karcher", TUNED), lambda: slow.karcher(X)),
    "karcher, one step": (
        lambda: merged("karcher", [*TUNED[:2], -TUNED[2]], max_iter=1),
        lambda: slow.karcher([*X[:2], -X[2]], max_iter=1),
    ),
    "task_arithmetic": (
        lambda: merged("task_arithmetic", TUNED, BASE, weight=W, **{"lambda": 0.7}),
        lambda: slow.task(B, X, W, scale=0.7),
    ),
    "task_arithmetic, normalized": (
        lambda: merged("task_arithmetic", TUNED, BASE, weight=W, normalize=True),
        lambda: slow.task(B, X, W, normalize=True),
    ),
    "ties": (
        lambda: merged("ties", TUNED, BASE, weight=W, density=D),
        lambda: slow.task(B, X, W, masks=masks(X, B, D), vote=True, normalize=True),
    ),
    "ties where many changes are equal": (
        lambda: merged("ties", COARSE, COARSE_BASE, weight=W, density=D, **{"lambda": 0.5}),
        lambda: slow.task(CB, CX, W, masks=masks(CX, CB, D), vote=True, normalize=True, scale=0.5),
    ),
    "ties, rescaled, not normalised, a weight below zero": (
        lambda: merged(
            "ties", TUNED, BASE, weight=[1, -0.5, 0.4], density=D, rescale=True, normalize=False
        ),
        lambda: slow.task(B, X, [1, -0.5, 0.4], masks=masks(X, B, D), vote=True, rescale=True),
    ),
    "breadcrumbs": (
        lambda: merged("breadcrumbs", TUNED, BASE, weight=W, density=D, gamma=[0.1, 0.2, 0.0]),
        lambda: slow.task(B, X, W, masks=crumbs(X, B, D, [0.1, 0.2, 0.0])),
    ),
    "breadcrumbs_ties where many changes are equal": (
        lambda: merged(
            "breadcrumbs_ties", COARSE, COARSE_BASE, weight=W, density=D, gamma=[0.1, 0.6, 0.05]
        ),
        lambda: slow.task(CB, CX, W, masks=crumbs(CX, CB, D, [0.1, 0.6, 0.05]), vote=True),
    ),
    "model_stock": (
        lambda: merged("model_stock", TUNED, BASE),
        lambda: slow.model_stock(B, X),
    ),
    "model_stock by row": (
        lambda: merged("model_stock", TUNED, BASE, filter_wise=True),
        lambda: slow.model_stock(B, X, filter_wise=True),
    ),
    "sce": (lambda: merged("sce", TUNED, BASE), lambda: slow.sce(B, X)),
    "sce of a part": (
        lambda: merged("sce", TUNED, BASE, select_topk=0.3),
        lambda: slow.sce(B, X, 0.3),
    ),
    "ram": (lambda: merged("ram", TUNED, BASE, epsilon=0.2), lambda: slow.ram(B, X, 0.2)),
    "ramplus_tl": (
        lambda: merged("ramplus_tl", TUNED, BASE, epsilon=0.2, r=0.5, alpha=3.0),
        lambda: slow.ram(B, X, 0.2, r=0.5, alpha=3.0),
    ),
    "ramplus_tl where nothing is a model's alone": (
        lambda: merged("ramplus_tl", [TUNED[0]] * 3, BASE),
        lambda: X[0],
    ),
    "nearswap": (
        lambda: merged("nearswap", TUNED[:1], BASE, t=0.1),
        lambda: np.where(np.abs(X[0] - B) <= 0.1, X[0], B + 0.1 * np.sign(X[0] - B)),
    ),
    "arcee_fusion": (
        lambda: merged("arcee_fusion", TUNED[:1], BASE),
        lambda: slow.arcee_fusion(B, X[0]),
    ),
    "passthrough": (lambda: merged("passthrough", TUNED[:1], scale=[2.0]), lambda: 2 * X[0]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_method_equals_its_slow_version(case):
    ours, theirs = CASES[case]
    np.testing.assert_allclose(ours(), theirs(), rtol=1e-11, atol=1e-12)


def random_parameters(method):
    parameters = {"weight": W, "density": D}
    return {**parameters, "epsilon": [0.1, 0.2, 0.1]} if method.startswith("della") else parameters


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_is_the_task_sum_of_the_elements_it_draws(method):
    drawn = [(uniform(key, 0, B.size).reshape(SHAPE) < d) for key, d in zip(KEYS, D, strict=True)]
    vote = method == "dare_ties"
    ours = merged(method, TUNED, BASE, **random_parameters(method))
    expected = slow.task(B, X, W, masks=drawn, vote=vote, rescale=True)
    np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_draws_by_the_rank_in_the_row(method):
    drawn = []
    parameters = random_parameters(method)
    for x, key, density, epsilon in zip(X, KEYS, D, parameters["epsilon"], strict=True):
        mask = np.zeros(SHAPE)
        numbers = uniform(key, 0, B.size).reshape(SHAPE)
        for row in range(SHAPE[0]):
            ranks = np.argsort(np.argsort(np.abs(x - B)[row].astype(np.float32)))
            chance = density - epsilon + 2 * epsilon * ranks / (SHAPE[1] - 1)
            mask[row] = numbers[row] < chance
        drawn.append(mask)
    vote = method == "della"
    ours = merged(method, TUNED, BASE, **parameters)
    expected = slow.task(B, X, W, masks=drawn, vote=vote, rescale=True, normalize=vote)
    np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-12)


PARAMETERS = {
    "linear": {"weight": W},
    "slerp": {"t": 0.3},
    "nuslerp": {"weight": W[:2]},
    "multislerp": {"weight": W},
    "karcher": {},
    "task_arithmetic": {"weight": W},
    "ties": {"weight": W, "density": D},
    "dare_linear": random_parameters("dare_linear"),
    "dare_ties": random_parameters("dare_ties"),
    "della": random_parameters("della"),
    "della_linear": random_parameters("della_linear"),
    "breadcrumbs": {"weight": W, "density": D, "gamma": [0.1] * 3},
    "breadcrumbs_ties": {"weight": W, "density": D, "gamma": [0.1] * 3},
    "model_stock": {},
    "sce": {"select_topk": 0.4},
    "ram": {"epsilon": 0.2},
    "ramplus_tl": {"epsilon": 0.2},
    "nearswap": {"t": 0.1},
    "arcee_fusion": {},
    "passthrough": {"scale": [0.5]},
}
COUNTS = {"slerp": 1, "nuslerp": 2, "nearswap": 1, "arcee_fusion": 1, "passthrough": 1}
WITHOUT_BASE = ("linear", "karcher", "passthrough")


def test_every_method_is_here():
    assert set(PARAMETERS) == set(METHODS)


@pytest.mark.parametrize("method", PARAMETERS)
@pytest.mark.parametrize("shape", [(6, 10), (7,), (2, 3, 5), (1, 1)])
def test_blocks_do_not_show_in_the_result(method, shape):
    base, tuned = make(shape, coarse=True)
    tuned = tuned[: COUNTS.get(method, 3)]
    base = None if method in WITHOUT_BASE else base
    results = [
        merged(method, tuned, base, block=block, **PARAMETERS[method]) for block in (1, 7, 1000)
    ]
    assert np.isfinite(results[0]).all()
    for other in results[1:]:  # sums over the tensor are made in other orders
        np.testing.assert_allclose(results[0], other, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("method", ["slerp", "nearswap"])
def test_t_0_is_the_first_model(method):
    if method == "slerp":
        assert np.array_equal(merged("slerp", TUNED[1:2], TUNED[0], t=0.0), X[0])
        np.testing.assert_allclose(merged("slerp", TUNED[1:2], TUNED[0], t=1.0), X[1], rtol=1e-15)
    else:
        assert np.array_equal(merged("nearswap", TUNED[:1], BASE, t=0.0), B)


@pytest.mark.parametrize(
    "method", ["ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs"]
)
def test_density_1_keeps_every_change(method):
    extra = {"della": {"epsilon": [0.1] * 3}, "breadcrumbs": {"gamma": [0.1] * 3}}
    parameters = {"weight": W, "density": ONE, **extra.get(method.split("_")[0], {})}
    vote = method in ("ties", "dare_ties", "della")
    expected = slow.task(B, X, W, vote=vote, normalize=method in ("ties", "della"))
    np.testing.assert_allclose(
        merged(method, TUNED, BASE, **parameters), expected, rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("method", ["linear", "multislerp", "karcher"])
def test_a_model_alone_comes_out_as_it_is(method):
    parameters = {} if method == "karcher" else {"weight": [0.7]}
    assert np.array_equal(merged(method, TUNED[:1], **parameters), X[0])


@pytest.mark.parametrize("method", ["karcher", "multislerp", "slerp", "nuslerp"])
def test_equal_models_stay_what_they_are(method):
    parameters = {"slerp": {"t": 0.4}, "karcher": {}}.get(method, {"weight": [0.5, 0.5]})
    equal = ([TUNED[0]], TUNED[0]) if method == "slerp" else ([TUNED[0], TUNED[0]], None)
    same = merged(method, *equal, **parameters)
    np.testing.assert_allclose(same, X[0], rtol=1e-7)  # multislerp's eps shows


def test_slerp_by_hand():
    # A right angle, half way: both at sin(45 deg) / sin(90 deg).
    half = merged("slerp", [np.float32([[0, 4]])], np.float32([[2, 0]]), t=0.5)
    np.testing.assert_allclose(half, [[2 * 0.5**0.5, 4 * 0.5**0.5]])


def test_ties_by_hand():
    base = np.float32([1, 1, 1, 1])
    first, second = np.float32([3, 1.5, 0, 1]), np.float32([2, -3, 2.5, 1.25])
    # Changes: [2, .5, -1, 0] and [1, -4, 1.5, .25]. Half of them: [2, ., -1, .] and [., -4, 1.5, .].
    # Signs: +, -, + (0.5), + (nothing). Means of those that agree: 2, -4, 1.5, 0.
    ours = merged("ties", [first, second], base, weight=[1, 1], density=[0.5, 0.5])
    assert ours.tolist() == [3, -3, 2.5, 1]


def test_a_tie_of_signs_goes_to_plus():
    ours = merged(
        "ties", [np.float32([3]), np.float32([-1])], np.float32([1]), weight=[1, 1], density=[1, 1]
    )
    assert ours.tolist() == [3]


def test_model_stock_by_hand():
    # Changes at a right angle: c = 0, so t = 0 and the base stays. Equal ones: c = 1, so t = 1.
    base, x, y = np.float32([[1, 1]]), np.float32([[3, 1]]), np.float32([[1, 2]])
    assert merged("model_stock", [x, y], base).tolist() == [[1, 1]]
    assert merged("model_stock", [x, x], base).tolist() == [[3, 1]]


def test_breadcrumbs_without_outliers_is_top_k():
    parameters = {"weight": W, "density": D, "gamma": [0.0] * 3}
    ours = merged("breadcrumbs", TUNED, BASE, **parameters)
    thinned = masks(X, B, D, count=lambda d, n: int(d * n))
    np.testing.assert_allclose(ours, slow.task(B, X, W, masks=thinned), rtol=1e-12)


def test_unusable_epsilon_and_directions_are_refused():
    with pytest.raises(MergeError, match=r"density 0.9 and epsilon 0.2: .*lower epsilon"):
        merged("della", TUNED, BASE, weight=W, density=[0.9] * 3, epsilon=[0.2] * 3)
    away = [TUNED[0], -TUNED[0] / 2, -TUNED[0] / 2]
    with pytest.raises(MergeError, match="add up to zero"):
        merged("multislerp", away, weight=[2, 1, 1])


def test_ram_averages_only_what_several_changed():
    base = np.zeros(4, np.float32)
    inputs = np.array([[8, 0, 0, 0], [0, 4, 0, 0], [0, 2, 6, 1e-6]], np.float32)
    assert merged("ram", inputs, base).tolist() == [8, 3, 6, 0]
    # Shared to alone: 0 of 1, 1 of 0, 1 of 1; limited to 0.5, times r = 2.
    found = merged("ramplus_tl", inputs, base, r=2.0, alpha=0.5)
    assert found.tolist() == [8, 3, 12, 0]
