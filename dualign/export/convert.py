"""Exact files (f32, f16, bf16) of a checkpoint, by llama.cpp's converter or by dualign.

llama.cpp's converter knows more architectures, but handles some settings worse: the bos token
before a chat, and those that `architecture.py` refuses. So its file is compared with what dualign
would write before it is used.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dualign.checkpoints.dtypes import from_float
from dualign.checkpoints.shards import write_side_files, write_weights
from dualign.errors import CheckpointError, excerpt
from dualign.export.model_source import ExportSource
from dualign.export.tensors import GGUFTensor
from dualign.export.writer import GGUFLayout, settings, write_model

SCRIPTS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
# Pre-tokenizers that split every text of such a vocabulary alike.
_SAME_PRE = ({"gpt-2", "smollm"}, {"llama-bpe", "smaug-bpe"})
_OPTIONAL = frozenset({"tokenizer.ggml.eot_token_id", "tokenizer.ggml.unknown_token_id"})
_BOS = "tokenizer.ggml.add_bos_token"


def find_converter() -> list[str] | None:
    """Return the command of llama.cpp's converter, from $LLAMA_CPP_DIR or the PATH; else None.

    Raises:
        CheckpointError: $LLAMA_CPP_DIR is set and doesn't contain it.
    """
    if folder := os.environ.get("LLAMA_CPP_DIR"):
        script = Path(folder) / SCRIPTS[0]
        if not script.is_file():
            raise CheckpointError(f"LLAMA_CPP_DIR={folder}: there is no {SCRIPTS[0]}")
        return [sys.executable, str(script)]
    for name in SCRIPTS:
        if path := shutil.which(name):
            return [sys.executable, path] if path.endswith(".py") else [path]
    return None


def write_exact(
    source: ExportSource, out: Path, type: str, command: Sequence[str] | None
) -> list[str]:
    """Write `out` as a type of `EXACT`, and return the settings that had to be corrected in it.

    `command` runs llama.cpp's converter; None: dualign writes the file.

    Raises:
        CheckpointError: the converter failed, or its file differs from the checkpoint.
    """
    if command is None:
        assert source.layout is not None
        write_model(out, source.layout, type)
        return []
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".plain-") as folder:
        plain = Path(folder)
        write_weights(source.weights, plain)
        write_side_files(source.weights, plain, dtype="input")
        source.tokenizer.save_pretrained(plain)
        (plain / "chat_template.jinja").write_text(source.chat_template, encoding="utf-8")
        options = ["--outfile", str(out), "--outtype", type, "--model-name", source.name]
        done = subprocess.run(
            [*command, str(plain), *options], capture_output=True, text=True, check=False
        )
    if done.returncode != 0 or not out.is_file():
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise CheckpointError(
            f"llama.cpp's converter, {command[-1]}, failed; --converter dualign does without it. "
            f"It printed:\n{last}"
        )
    return [] if source.layout is None else _compare(out, source.layout, type)


def _compare(file: Path, layout: GGUFLayout, type: str) -> list[str]:
    """Compare the converter's file with dualign's settings and tensors; return corrections."""
    from gguf import GGUFReader

    reader = GGUFReader(file, "r+")
    expected = settings(layout, type)
    fixed_fields = _fix_bos(reader, expected=bool(expected[_BOS]))
    for key, value in expected.items():
        if key.startswith("general.") or key == _BOS:
            continue
        field = reader.fields.get(key)
        actual = field.contents() if field is not None else None
        if not _same_setting(key, value, actual):
            raise CheckpointError(
                f"llama.cpp's converter wrote {key} = {excerpt(actual)}, expected {excerpt(value)}; "
                "use --converter dualign"
            )
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    if extra := set(stored) ^ {tensor.name for tensor in layout.tensors}:
        raise CheckpointError(f"llama.cpp's converter: {sorted(extra)[0]} is in one of two files")
    for tensor in layout.tensors:
        _require_same(tensor, _numbers(stored[tensor.name]))
    return fixed_fields


def _fix_bos(reader: Any, *, expected: bool) -> list[str]:
    field = reader.fields.get(_BOS)
    if field is None:
        pre = reader.fields["tokenizer.ggml.pre"].contents()
        if (pre == "llama-bpe") != expected:
            raise CheckpointError(
                f"llama.cpp's converter left {_BOS} out, so a chat would begin otherwise than in "
                "training; use --converter dualign"
            )
        return []
    if bool(field.contents()) == expected:
        return []
    field.parts[field.data[0]][0] = expected
    reader.data.flush()
    return [f"{_BOS} set to {str(expected).lower()}, as the chat template has it"]


def _same_setting(key: str, expected: Any, actual: Any) -> bool:
    if actual is None:
        return key in _OPTIONAL
    if key == "tokenizer.ggml.pre" and any({expected, actual} <= same for same in _SAME_PRE):
        return True
    if isinstance(expected, float):
        return bool(np.float32(expected) == np.float32(actual))
    return bool(expected == actual)


def _numbers(data: Any) -> Any:
    """Return bfloat16 numbers, which the reader gives as bytes, as uint16."""
    return data.view(np.uint16) if data.dtype == np.uint8 else data


def _require_same(tensor: GGUFTensor, data: Any) -> None:
    kind = {"float16": "F16", "float32": "F32", "uint16": "BF16"}.get(str(data.dtype), "")
    if not kind or data.shape != tensor.shape:
        raise CheckpointError(f"llama.cpp's converter: {tensor.name} is {data.dtype} {data.shape}")
    if not np.array_equal(from_float(tensor.read(), kind), data):
        raise CheckpointError(
            f"llama.cpp's converter wrote other numbers for {tensor.name}; use --converter dualign"
        )
