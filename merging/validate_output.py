"""Is the folder that was written the model that was planned? Its files are read back and compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import Checkpoint, Weights, embedding_name, read_json
from dualign.checkpoints.shards import chat_template
from dualign.errors import MergeError
from dualign.merging.tokenizer.alignment import Alignment
from dualign.merging.tokenizer.token_id_fields import ids_in
from dualign.merging.tokenizer.vocabulary import TOKENIZER

_TYPES = ("dtype", "torch_dtype")


def check_written(
    work: Path,
    weights: Weights,
    *,
    template: str | None,
    alignment: Alignment | None,
) -> None:
    """Compare tensors, config.json, vocabulary, special ids and template with the plan.

    Raises:
        MergeError: one of them isn't what was planned; nothing is published then.
    """
    written, config = Checkpoint(work), weights.config
    shapes = {name: entry.shape for name, entry in weights.entries.items()}
    found = {name: entry.shape for name, entry in written.entries.items()}
    for name in sorted(set(shapes) | set(found)):
        if shapes.get(name) != found.get(name):
            _refuse(work, f"{name} is {found.get(name)}", shapes.get(name))
    for key in sorted(set(config) | set(written.config)):
        if key not in _TYPES and config.get(key) != written.config.get(key):
            _refuse(work, f"config.json has {key}: {written.config.get(key)!r}", config.get(key))
    if alignment is not None:
        _check_vocabulary(work, alignment)
    if template is not None and chat_template(written) != template:
        _refuse(work, "another chat template was written", "the one that was chosen")
    embedding = embedding_name(written.entries)
    if embedding is not None:
        _check_ids(work, written.entries[embedding].shape[0], written.config)


def _check_vocabulary(work: Path, alignment: Alignment) -> None:
    from tokenizers import Tokenizer

    # As the library reads it, which decides for itself which ids added tokens get.
    ids = Tokenizer.from_file(str(work / TOKENIZER)).get_vocab(with_added_tokens=True)
    for token in sorted(set(ids) ^ set(alignment.vocabulary.ids)):
        _refuse(work, f"{TOKENIZER} has {token!r}: {token in ids}", token not in ids)
    for token, place in alignment.vocabulary.ids.items():
        if ids[token] != place:
            _refuse(work, f"{TOKENIZER} has {token!r} as {ids[token]}", place)


def _check_ids(work: Path, rows: int, config: Mapping[str, Any]) -> None:
    """Every id that the settings name has a row."""
    file = work / "generation_config.json"
    settings = {"config.json": config, **({file.name: read_json(file)} if file.is_file() else {})}
    for name, values in settings.items():
        for key, ids in ids_in(values).items():
            if max(ids) >= rows:
                _refuse(work, f"{name} has {key}: {max(ids)}", f"an id below {rows}")


def _refuse(work: Path, found: str, expected: object) -> None:
    raise MergeError(f"{work}: {found}, expected {expected!r}; please report this as a bug")
