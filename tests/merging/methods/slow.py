"""The methods as their papers say them: whole tensors, float64, loops; nothing shared with ours."""

import math

import numpy as np


def slerp(x0, x1, t):
    a, b = x0.reshape(-1), x1.reshape(-1)
    cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    if abs(cosine) > 0.9995:
        return (1 - t) * x0 + t * x1
    theta = math.acos(cosine)
    return (math.sin((1 - t) * theta) * x0 + math.sin(t * theta) * x1) / math.sin(theta)


def nuslerp(x0, x1, w0, w1, axis=None, base=None):
    """`axis`: the dimension along which vectors lie; None for one vector."""
    if base is not None:
        return base + nuslerp(x0 - base, x1 - base, w0, w1, axis)
    t = w1 / (w0 + w1)
    if axis is None:
        return _exact_slerp(x0.reshape(-1), x1.reshape(-1), t).reshape(x0.shape)
    out = np.empty_like(x0)
    a, b, o = (np.moveaxis(item, axis, -1) for item in (x0, x1, out))
    for place in np.ndindex(a.shape[:-1]):
        o[place] = _exact_slerp(a[place], b[place], t)
    return out


def _exact_slerp(a, b, t):
    theta = math.acos(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    return (math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)


def multislerp(tensors, weights, base=None, eps=1e-8):
    if base is not None:
        return base + multislerp([tensor - base for tensor in tensors], weights, None, eps)
    w = [weight / sum(weights) for weight in weights]
    flat = [tensor.reshape(-1) for tensor in tensors]
    units = [vector / (np.linalg.norm(vector) + eps) for vector in flat]
    mean = sum(a * u for a, u in zip(w, units, strict=True))
    mean = mean / np.linalg.norm(mean)
    tangent = sum(a * (u - (u @ mean) * mean) for a, u in zip(w, units, strict=True))
    length = np.linalg.norm(tangent) + eps
    point = mean * math.cos(length) + tangent * math.sin(length) / length
    size = sum(a * np.linalg.norm(item) for a, item in zip(w, flat, strict=True))
    return (point * size).reshape(tensors[0].shape)


def karcher(tensors, max_iter=10, tol=1e-5):
    flat = [tensor.reshape(-1) for tensor in tensors]
    units = [vector / np.linalg.norm(vector) for vector in flat]
    u = sum(units)
    u = u / np.linalg.norm(u)
    for _ in range(max_iter):
        tangent = np.zeros_like(u)
        for unit in units:
            theta = math.acos(min(1, max(-1, unit @ u)))
            tangent += (theta / math.sin(theta)) * (unit - math.cos(theta) * u) / len(units)
        length = np.linalg.norm(tangent)
        if length < tol:
            break
        u = math.cos(length) * u + math.sin(length) * tangent / length
        u = u / np.linalg.norm(u)
    return (u * np.mean([np.linalg.norm(vector) for vector in flat])).reshape(tensors[0].shape)


def task(
    base, changed, weights, *, masks=None, vote=False, normalize=False, rescale=False, scale=1.0
):
    """One element at a time. `masks`: for each model the elements it keeps."""
    deltas = [item - base for item in changed]
    if masks is not None:
        for i, mask in enumerate(masks):
            thinned = deltas[i] * mask
            gain = np.abs(deltas[i]).sum() / np.abs(thinned).sum() if rescale else 1
            deltas[i] = thinned * gain
    out = base.copy()
    for place in np.ndindex(base.shape):
        parts = [w * d[place] for w, d in zip(weights, deltas, strict=True)]
        counted = list(weights)
        if vote:
            sign = 1 if sum(parts) >= 0 else -1
            agree = [np.sign(part) == sign for part in parts]
            parts = [part for part, item in zip(parts, agree, strict=True) if item]
            counted = [w for w, weight in zip(weights, agree, strict=True) if weight]
        total = sum(parts)
        if normalize and sum(counted) != 0:
            total /= sum(counted)
        out[place] += scale * total
    return out


def top(delta, first, last):
    """The elements ranked [first, last), the largest first, the earlier of equals first."""
    flat = np.abs(delta).reshape(-1).astype(np.float32)
    order = sorted(range(flat.size), key=lambda i: (-flat[i], i))[first:last]
    mask = np.zeros(flat.size)
    mask[order] = 1
    return mask.reshape(delta.shape)


def model_stock(base, tensors, filter_wise=False):
    if filter_wise:
        rows = zip(base, *tensors, strict=True)
        return np.stack([model_stock(row[0], row[1:]) for row in rows])
    deltas = [(tensor - base).reshape(-1) for tensor in tensors]
    n = len(deltas)
    cosines = [
        deltas[i] @ deltas[j] / (np.linalg.norm(deltas[i]) * np.linalg.norm(deltas[j]))
        for i in range(n)
        for j in range(i)
    ]
    c = np.mean(cosines)
    t = n * c / (1 + (n - 1) * c)
    return t * np.mean(tensors, axis=0) + (1 - t) * base


def sce(base, tensors, share=1.0):
    deltas = np.stack([tensor - base for tensor in tensors])
    variance = deltas.var(axis=0)
    if share < 1:
        deltas = deltas * top(variance, 0, int(np.count_nonzero(variance) * share))
    energy = (deltas**2).mean(axis=tuple(range(1, deltas.ndim)))
    weights = energy / energy.sum()
    out = base.copy()
    for place in np.ndindex(base.shape):
        column = deltas[(slice(None), *place)]
        sign = 1 if column.sum() >= 0 else -1
        agree = np.sign(column) == sign
        out[place] += (weights * column)[agree].sum() / max(weights[agree].sum(), 1e-6)
    return out


def ram(base, tensors, epsilon, *, r=0.0, alpha=0.0):
    deltas = np.stack([tensor - base for tensor in tensors])
    count = (np.abs(deltas) > epsilon).sum(axis=0)
    out = base.copy()
    for delta in deltas:
        mine = np.abs(delta) > epsilon
        ratio = min((mine & (count > 1)).sum() / max((mine & (count == 1)).sum(), 1e-5), alpha)
        for place in zip(*np.nonzero(mine), strict=True):
            out[place] += delta[place] * (1 + r * ratio if count[place] == 1 else 1 / count[place])
    return out


def arcee_fusion(base, x):
    def softmax(v):
        e = np.exp(v - v.max())
        return e / e.sum()

    rows_b, rows_x = base.reshape(-1, base.shape[-1]), x.reshape(-1, x.shape[-1])
    importance = []
    for b, item in zip(rows_b, rows_x, strict=True):
        p, q = softmax(item) + 1e-8, softmax(b) + 1e-8
        importance.append(np.abs(item - b) * (p * np.log(p / q)).sum())
    importance = np.array(importance).astype(np.float32)
    ranked = sorted(importance.reshape(-1).tolist())
    low, middle, high = (ranked[int(q * (len(ranked) - 1))] for q in (0.25, 0.5, 0.75))
    kept = importance >= np.float32(middle + 1.5 * (high - low))
    return base + (x - base) * kept.reshape(base.shape)
