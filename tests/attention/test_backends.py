"""Every back end against one dense softmax over all keys of the batch, under a mask made entry by entry."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dualign.attention.backends import BACKENDS, choose_backend
from dualign.attention.scores import Scores
from dualign.attention.segments import Segments, branch_segments, document_segments

SEGMENTS = {
    "documents": lambda: document_segments([9, 1, 14]),
    "branches": lambda: branch_segments([6, 0, 3], [[4, 1], [5], [2, 7]]),
    # one batch of both: a document is a prefix without branches
    "both": lambda: branch_segments([8, 5], [[], [3, 6]]),
}
SCORES = {
    "plain": {},
    "scaled": {"scale": 0.1},
    "window": {"window": 3},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": True},
    "all": {"scale": 0.3, "window": 4, "softcap": 1.5, "sinks": True},
}
CPU_BACKENDS = ("sdpa per document", "steps per document")


def seen_by(segments: Segments, window: int | None) -> Tensor:
    """Whether query i sees key j of the batch [T, T], one entry after the other."""
    starts = [sum(segments.query_lengths[:i]) for i in range(len(segments.query_lengths))]
    runs = [
        range(start, start + n) for start, n in zip(starts, segments.query_lengths, strict=True)
    ]
    seen = torch.zeros(segments.tokens, segments.tokens, dtype=torch.bool)
    for queries, parts in zip(runs, segments.key_segments, strict=True):
        keys = [key for part in parts for key in runs[part]]
        for i, query in enumerate(queries):
            last = len(keys) - len(queries) + i
            first = 0 if window is None else max(0, last - window + 1)
            seen[query, keys[first : last + 1]] = True
    return seen


def dense(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scores: Scores) -> Tensor:
    """softmax over all T keys in float64, [1, T, N, H]."""
    q, k, v = (tensor.double().cpu() for tensor in (q, k, v))
    k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
    scale = q.shape[-1] ** -0.5 if scores.scale is None else scores.scale
    products = q @ k.transpose(2, 3) * scale
    if scores.softcap:
        products = torch.tanh(products / scores.softcap) * scores.softcap
    weights = products.exp() * seen_by(segments, scores.window)
    total = weights.sum(-1, keepdim=True)
    if scores.sinks is not None:
        total = total + scores.sinks.double().cpu().exp().view(1, -1, 1, 1)
    return (weights / total @ v).transpose(1, 2)


def inputs(scores: dict, size: int = 10, value_size: int = 10) -> tuple[list[Tensor], Scores]:
    torch.manual_seed(0)
    tensors = [torch.randn(1, n, 28, size) for n in (6, 2)]
    tensors.append(torch.randn(1, 2, 28, value_size))
    sinks = torch.randn(6) if scores.get("sinks") else None
    return tensors, Scores(**{"scale": None, "window": None, **scores, "sinks": sinks})


def attend(name: str) -> Callable[..., Tensor]:
    return next(backend.attend for backend in BACKENDS if backend.name == name)


def gradients(output: Tensor, tensors: list[Tensor], weights: Tensor) -> Tensor:
    grads = torch.autograd.grad((output * weights).sum(), tensors)
    return torch.cat([grad.flatten().double() for grad in grads])


def cases(*names: str) -> list[tuple[str, str, str]]:
    return [
        (name, kind, asked)
        for name in names
        for kind in SEGMENTS
        for asked in SCORES
        if name != "sdpa per document" or asked in ("plain", "scaled", "window")
    ]


@pytest.mark.parametrize(("name", "kind", "asked"), cases(*CPU_BACKENDS))
def test_outputs_and_gradients_equal_a_dense_softmax(name: str, kind: str, asked: str) -> None:
    segments = SEGMENTS[kind]()
    tensors, scores = inputs(SCORES[asked])
    tensors = [tensor[:, :, : segments.tokens].requires_grad_() for tensor in tensors]
    trained = tensors if scores.sinks is None else [*tensors, scores.sinks.requires_grad_()]
    output = attend(name)(*tensors, segments, scores)
    expected = dense(*tensors, segments, scores)
    weights = torch.randn_like(output)
    assert (output - expected).abs().max() <= 1e-6 * expected.abs().max()
    ours, theirs = (
        gradients(result, trained, weights.to(result.dtype)) for result in (output, expected)
    )
    assert torch.cosine_similarity(ours, theirs, dim=0) >= 1 - 1e-10
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("kind", "asked"), [("both", "window"), ("branches", "all")])
def test_flex_attention_equals_a_dense_softmax(kind: str, asked: str) -> None:
    segments = SEGMENTS[kind]()
    tensors, scores = inputs(SCORES[asked])
    tensors = [tensor[:, :, : segments.tokens] for tensor in tensors]
    expected = dense(*tensors, segments, scores)
    output = attend("flex")(*tensors, segments, scores)
    assert (output - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_values_may_have_another_size_than_keys() -> None:
    segments = SEGMENTS["both"]()
    tensors, scores = inputs({}, value_size=4)
    tensors = [tensor[:, :, : segments.tokens] for tensor in tensors]
    for name in CPU_BACKENDS:
        output = attend(name)(*tensors, segments, scores)
        assert torch.allclose(output, dense(*tensors, segments, scores).float(), atol=1e-6)


def test_a_cpu_takes_sdpa_where_it_can_and_steps_elsewhere() -> None:
    tensors, plain = inputs({"window": 3})
    _, capped = inputs({"softcap": 2.0})
    _, sinks = inputs({"sinks": True})
    names = [
        choose_backend(tensors[0], tensors[2], scores).name for scores in (plain, capped, sinks)
    ]
    assert names == ["sdpa per document", "steps per document", "steps per document"]


GPU_CASES = [
    (name, kind, asked)
    for name in ("torch varlen", "flash-attn", "flex")
    for kind in SEGMENTS
    for asked in SCORES
]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "kind", "asked"), GPU_CASES)
def test_kernels_of_a_gpu_equal_a_dense_softmax(name: str, kind: str, asked: str) -> None:
    segments = SEGMENTS[kind]().to("cuda")
    tensors, scores = inputs(SCORES[asked], size=16, value_size=16)
    tensors = [
        tensor[:, :, : segments.tokens].to("cuda", torch.bfloat16).requires_grad_()
        for tensor in tensors
    ]
    if scores.sinks is not None:
        scores = replace(scores, sinks=scores.sinks.cuda().requires_grad_())
    backend = next(backend for backend in BACKENDS if backend.name == name)
    if not backend.fits(tensors[0], tensors[2], scores):
        pytest.skip(f"{name} doesn't do {asked} here")
    trained = tensors if scores.sinks is None else [*tensors, scores.sinks]
    output, expected = (attend(*tensors, segments, scores) for attend in (backend.attend, dense))
    weights = torch.randn_like(expected)
    ours, theirs = (gradients(result, trained, weights.to(result)) for result in (output, expected))
    assert (output.cpu() - expected).norm() <= 1e-2 * expected.norm()
    assert torch.cosine_similarity(ours.cpu(), theirs.cpu(), dim=0) >= 0.999


class LargestTensor(TorchDispatchMode):
    """Notes the elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        output = func(*args, **(kwargs or {}))
        for part in output if isinstance(output, tuple | list) else [output]:
            if isinstance(part, Tensor):
                self.elements = max(self.elements, part.numel())
        return output


@pytest.mark.parametrize("lengths", [(2000,), (900, 1100)], ids=["one document", "two"])
def test_no_tensor_has_tokens_by_tokens(lengths: tuple[int, ...]) -> None:
    """Neither a mask nor scores, forth and back: the memory of a long row is linear."""
    segments = document_segments(lengths)
    query, key, value = (torch.randn(1, n, 2000, 8, requires_grad=True) for n in (4, 2, 2))
    backend = choose_backend(query, value, Scores(scale=None, window=None))
    with LargestTensor() as largest:
        backend.attend(
            query, key, value, segments, Scores(scale=None, window=None)
        ).sum().backward()
    assert largest.elements == query.numel()
