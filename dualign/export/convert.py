"""An exact file (f32 or f16) of a checkpoint, by llama.cpp's converter or by ours."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from dualign.checkpoints.shards import write_side_files, write_weights
from dualign.export import llamacpp
from dualign.export.model_source import Source
from dualign.export.writer import settings, write_model


def write_exact(source: Source, out: Path, type: str, command: Sequence[str] | None) -> list[str]:
    """Write `out`, and return what had to be mended in it.

    `command` runs llama.cpp's converter; None: ours writes.

    Raises:
        CheckpointError: the file would not be the checkpoint.
    """
    layout = source.layout
    if command is None:
        assert layout is not None
        write_model(
            out,
            layout.architecture,
            layout.vocabulary,
            layout.tensors,
            type=type,
            name=source.name,
            generation=source.generation,
        )
        return []
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".plain-") as folder:
        plain = _plain(source, Path(folder))
        llamacpp.convert(command, plain, out, type=type, name=source.name)
    if layout is None:
        return []
    expected = settings(
        layout.architecture,
        layout.vocabulary,
        layout.tensors,
        type=type,
        name=source.name,
        generation=source.generation,
    )
    return llamacpp.require_same(out, expected, layout.tensors)


def _plain(source: Source, folder: Path) -> Path:
    """A model folder as the file is to be, adapters folded in."""
    write_weights(source.weights, folder)
    write_side_files(source.weights, folder, dtype="input")
    source.tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(source.chat_template, encoding="utf-8")
    return folder
