"""Check after a merge that the folder is the model that was planned: its files are read back."""

import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dualign.checkpoints.checkpoint import Checkpoint, Weights, embedding_name, read_json
from dualign.checkpoints.dtypes import from_float, to_float32
from dualign.checkpoints.shards import PIECE, chat_template, cpu_count
from dualign.errors import MergeError
from dualign.merging.tokenizer.mapping import VocabularyMapping
from dualign.merging.tokenizer.token_id_fields import ids_in
from dualign.merging.tokenizer.vocabulary import TOKENIZER
from dualign.terminal import progress

RECOMPUTED_TENSORS = 3
_TYPE_KEYS = ("dtype", "torch_dtype")


def validate_output(
    work: Path,
    weights: Weights,
    *,
    template: str | None,
    mapping: VocabularyMapping | None,
) -> None:
    """Compare tensors, config.json, vocabulary, special ids and template with the plan.

    Raises:
        MergeError: one of them isn't as planned; nothing is published then.
    """
    written, config = Checkpoint(work), weights.config
    shapes = {name: entry.shape for name, entry in weights.entries.items()}
    written_shapes = {name: entry.shape for name, entry in written.entries.items()}
    for name in sorted(set(shapes) | set(written_shapes)):
        if shapes.get(name) != written_shapes.get(name):
            _refuse(work, f"{name} is {written_shapes.get(name)}", shapes.get(name))
    for key in sorted(set(config) | set(written.config)):
        if key not in _TYPE_KEYS and config.get(key) != written.config.get(key):
            _refuse(work, f"config.json has {key}: {written.config.get(key)!r}", config.get(key))
    if mapping is not None:
        _check_vocabulary(work, mapping)
    if template is not None and chat_template(written) != template:
        _refuse(work, "another chat template was written", "the one that was chosen")
    embedding = embedding_name(written.entries)
    if embedding is not None:
        _check_ids(work, written.entries[embedding].shape[0], written.config)


def _check_vocabulary(work: Path, mapping: VocabularyMapping) -> None:
    from tokenizers import Tokenizer

    # As the library reads it, which decides for itself which ids added tokens get.
    ids = Tokenizer.from_file(str(work / TOKENIZER)).get_vocab(with_added_tokens=True)
    for token in sorted(set(ids) ^ set(mapping.vocabulary.ids)):
        _refuse(work, f"{TOKENIZER} has {token!r}: {token in ids}", token not in ids)
    for token, token_id in mapping.vocabulary.ids.items():
        if ids[token] != token_id:
            _refuse(work, f"{TOKENIZER} has {token!r} as {ids[token]}", token_id)


def _check_ids(work: Path, rows: int, config: Mapping[str, Any]) -> None:
    """Check that every id in the settings has a row."""
    file = work / "generation_config.json"
    settings = {"config.json": config, **({file.name: read_json(file)} if file.is_file() else {})}
    for name, values in settings.items():
        for key, ids in ids_in(values).items():
            if max(ids) >= rows:
                _refuse(work, f"{name} has {key}: {max(ids)}", f"an id below {rows}")


def _refuse(work: Path, problem: str, expected: object) -> None:
    raise MergeError(f"{work}: {problem}, expected {expected!r}; please report this as a bug")


def recompute_tensors(
    out: Path,
    weights: Weights,
    *,
    seed: int,
    count: int = RECOMPUTED_TENSORS,
    threads: int | None = None,
) -> tuple[str, ...]:
    """Compute `count` tensors of `out`, drawn by `seed`, again; return their names.

    Raises:
        MergeError: a tensor's bytes aren't the same.
    """
    written = Checkpoint(out)
    names = sorted(written.entries)
    sample = tuple(random.Random(seed).sample(names, min(count, len(names))))
    total = sum(written.entries[name].nbytes for name in sample)
    with (
        ThreadPoolExecutor(threads or cpu_count()) as pool,
        progress(total, "computing again") as bar,
    ):
        for _ in pool.map(lambda name: _require_same(written, weights, name, bar.update), sample):
            pass
    return sample


def _require_same(
    written: Checkpoint, weights: Weights, name: str, advance: Callable[[int], object]
) -> None:
    entry = written.entries[name]
    computed, stored = weights.reader(name), written.reader(name)
    step = computed.step or PIECE
    for start in range(0, entry.size, step):
        stop = min(start + step, entry.size)
        expected = to_float32(from_float(computed.read(start, stop), entry.dtype), entry.dtype)
        if not np.array_equal(expected, stored.read(start, stop)):
            raise MergeError(
                f"{written.folder}: {name} reads back differently from what the inputs give, from "
                f"element {start} on; check the disk, and merge again"
            )
        advance((stop - start) * (entry.nbytes // entry.size))
