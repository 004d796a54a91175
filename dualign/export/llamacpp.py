"""llama.cpp's own converter, where it is installed; what it writes is compared with what we would.

It knows more architectures than dualign, and some settings less well: the beginning-of-text token
before a chat, and what `architecture.py` refuses. So its file is held against the checkpoint before
it is used.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dualign.checkpoints.dtypes import narrow
from dualign.errors import CheckpointError
from dualign.export.tensors import Tensor

SCRIPTS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
# Names of its own for the same rule: which pre-tokenizer a vocabulary without numbers of two digits
# had, or one that never merges whole words, makes no difference to any text.
_ALIKE = {"tokenizer.ggml.pre": ({"gpt-2", "smollm"}, {"llama-bpe", "smaug-bpe"})}
_OPTIONAL = frozenset({"tokenizer.ggml.eot_token_id", "tokenizer.ggml.unknown_token_id"})
_BOS = "tokenizer.ggml.add_bos_token"


def find_converter() -> list[str] | None:
    """The command that runs it: in $LLAMA_CPP_DIR, else on the PATH; None if it isn't there.

    Raises:
        CheckpointError: $LLAMA_CPP_DIR is set and doesn't hold it.
    """
    if folder := os.environ.get("LLAMA_CPP_DIR"):
        script = Path(folder) / SCRIPTS[0]
        if not script.is_file():
            raise CheckpointError(f"LLAMA_CPP_DIR={folder}: there is no {SCRIPTS[0]}")
        return [sys.executable, str(script)]
    for name in SCRIPTS:
        if found := shutil.which(name):
            return [sys.executable, found] if found.endswith(".py") else [found]
    return None


def convert(command: Sequence[str], folder: Path, out: Path, *, type: str, name: str) -> None:
    """Run it on a plain model folder.

    Raises:
        CheckpointError: it failed, with the end of what it said.
    """
    given = [str(folder), "--outfile", str(out), "--outtype", type, "--model-name", name]
    done = subprocess.run([*command, *given], capture_output=True, text=True, check=False)
    if done.returncode != 0 or not out.is_file():
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise CheckpointError(
            f"llama.cpp's converter, {command[-1]}, failed; --converter dualign does without it. "
            f"It said:\n{last}"
        )


def require_same(file: Path, expected: Mapping[str, Any], tensors: Sequence[Tensor]) -> list[str]:
    """Compare its file with our settings and tensors; returns what had to be mended in it.

    Raises:
        CheckpointError: a setting or a tensor is another.
    """
    from gguf import GGUFReader

    reader = GGUFReader(file, "r+")
    mended = _mend_bos(reader, bool(expected[_BOS]))
    for key, value in expected.items():
        if key.startswith("general.") or key == _BOS:
            continue
        field = reader.fields.get(key)
        found = field.contents() if field is not None else None
        if not _alike(key, value, found):
            raise CheckpointError(
                f"llama.cpp's converter wrote {key} = {_short(found)}, expected {_short(value)}; "
                "use --converter dualign"
            )
    stored = {one.name: one for one in reader.tensors}
    if extra := set(stored) ^ {one.name for one in tensors}:
        raise CheckpointError(f"llama.cpp's converter: {sorted(extra)[0]} is in one of two files")
    for one in tensors:
        _require_tensor(one, stored[one.name].data)
    return mended


def _mend_bos(reader: Any, wanted: bool) -> list[str]:
    field = reader.fields.get(_BOS)
    if field is None:
        pre = reader.fields["tokenizer.ggml.pre"].contents()
        if (pre == "llama-bpe") != wanted:
            raise CheckpointError(
                f"llama.cpp's converter left {_BOS} out, so a chat would begin otherwise than in "
                "training; use --converter dualign"
            )
        return []
    if bool(field.contents()) == wanted:
        return []
    field.parts[field.data[0]][0] = wanted
    reader.data.flush()
    return [f"{_BOS} set to {str(wanted).lower()}, as the chat template has it"]


def _alike(key: str, value: Any, found: Any) -> bool:
    if found is None:
        return key in _OPTIONAL
    if any({value, found} <= same for same in _ALIKE.get(key, ())):
        return True
    if isinstance(value, float):
        return bool(np.float32(value) == np.float32(found))
    return bool(value == found)


def _require_tensor(tensor: Tensor, data: Any) -> None:
    kind = {"float16": "F16", "float32": "F32"}.get(str(data.dtype), "")
    if not kind or data.shape != tensor.shape:
        raise CheckpointError(f"llama.cpp's converter: {tensor.name} is {data.dtype} {data.shape}")
    if not np.array_equal(narrow(tensor.read(), kind), data):
        raise CheckpointError(
            f"llama.cpp's converter wrote other numbers for {tensor.name}; use --converter dualign"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:76]} ..."
