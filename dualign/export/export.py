"""The main path: checkpoint -> f16 GGUF -> smaller files -> Modelfile -> check -> a finished folder.

dualign export runs/quickstart/merged gguf --types f16,q8_0,q4_k_m
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dualign import __version__
from dualign.errors import CheckpointError, ConfigError
from dualign.export import llama_runtime as runtimes
from dualign.export.check import Verdict, ask_transformers, check
from dualign.export.convert import write_exact
from dualign.export.model_source import Source, open_source
from dualign.export.modelfile import modelfile
from dualign.export.quantize import quantize, types_of
from dualign.hashing import sha256
from dualign.rundir import publish, work_folder, write_json

EXACT = ("f32", "f16")
TYPES = (*EXACT, "q8_0", "q4_k_m")
RECORD = "export.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One file of an export."""

    file: str
    type: str
    bytes: int
    bits_per_weight: float
    sha256: str
    tensors: Mapping[str, int]
    """how many there are of each type"""
    error: float | None
    """relative change of the weights by packing; None for f32 and f16"""
    check: Verdict | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """What was written; export.json holds the same."""

    model: str
    converter: str
    mended: tuple[str, ...]
    """what was set right in the file of llama.cpp's converter"""
    files: tuple[File, ...]


def export(
    model: str,
    out: Path,
    *,
    types: Sequence[str] = ("f16", "q8_0", "q4_k_m"),
    name: str | None = None,
    converter: str = "auto",
    runtime: str | None = "auto",
    force: bool = False,
) -> Export:
    """Write NAME-TYPE.gguf for each type, a Modelfile and export.json into `out`.

    `out` is there when all is written and checked, and not before.

    Args:
        converter: `llama.cpp`, `dualign`, or `auto`: llama.cpp's where it is installed.
        runtime: what loads the files and answers: a name of `runtime.RUNTIMES`, `auto`: the first
            that is installed, or None: nothing is checked.

    Raises:
        DualignError: the model can't be exported as it is, or llama.cpp answers otherwise.
    """
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: is there already; choose another folder, or use --force")
    command = choose_converter(converter)
    source = open_source(model, name=name, foreign=command is not None)
    require_types(source, types)
    _require_room(out, source, types)
    chosen = choose_runtime(runtime)
    work = work_folder(out)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        made = _write(source, work, types, command, chosen)
        write_json(work / RECORD, {"schema": 1, "dualign": __version__, **asdict(made)})
        publish(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return made


def choose_converter(converter: str) -> list[str] | None:
    """The command of llama.cpp's converter; None: ours."""
    from dualign.export.llamacpp import SCRIPTS, find_converter

    if converter == "dualign":
        return None
    command = find_converter()
    if converter == "llama.cpp" and command is None:
        raise CheckpointError(
            f"llama.cpp's converter isn't here: set LLAMA_CPP_DIR to its checkout, or put {SCRIPTS[0]} on the PATH"
        )
    return command


def choose_runtime(runtime: str | None) -> str | None:
    """The runtime that checks; None if nothing is to be checked, or `auto` finds none."""
    if runtime != "auto":
        return runtime
    return next(iter(runtimes.installed()), None)


def require_types(source: Source, types: Sequence[str]) -> None:
    """Refuse types that don't exist, or that nobody here can make of this model."""
    if unknown := [one for one in types if one not in TYPES]:
        raise ConfigError(f"--types: unknown type {unknown[0]!r}; there are {', '.join(TYPES)}")
    if not types:
        raise ConfigError(f"--types: expected some of {', '.join(TYPES)}")
    packed = [one for one in types if one not in EXACT]
    if source.layout is None and packed:
        raise ConfigError(
            f"--types: {packed[0]} of {source.weights.config['architectures'][0]} is for llama.cpp's "
            "llama-quantize, on the f16 file"
        )
    if "q4_k_m" in types:
        from dualign.export import ggml

        ggml.library()


def sizes(source: Source, types: Sequence[str]) -> dict[str, int]:
    """Bytes of the tensors of each type's file; the vocabulary adds some megabytes."""
    return {type: _size(source, type) for type in types}


def _write(
    source: Source,
    work: Path,
    types: Sequence[str],
    command: Sequence[str] | None,
    runtime: str | None,
) -> Export:
    types = list(dict.fromkeys(types))
    exact = [one for one in types if one in EXACT]
    base = "f16" if set(types) - set(EXACT) or not exact else exact[0]
    mended: dict[str, None] = {}
    details: dict[str, tuple[Mapping[str, int] | None, float | None]] = {}
    for type in dict.fromkeys([*exact, base]):
        mended |= dict.fromkeys(write_exact(source, _file(source, work, type), type, command))
        details[type] = None, None
    for type in [one for one in types if one not in EXACT]:
        packed = quantize(_file(source, work, base), _file(source, work, type), type=type)
        details[type] = packed.types, packed.error
    if base not in types:
        _file(source, work, base).unlink()
    _write_modelfile(source, work, types)
    verdicts = _check(source, work, types, runtime) if runtime else {}
    return Export(
        model=source.model,
        converter=command[-1] if command else "dualign",
        mended=tuple(mended),
        files=tuple(
            _described(_file(source, work, type), type, *details[type], verdicts.get(type))
            for type in types
        ),
    )


def _file(source: Source, work: Path, type: str) -> Path:
    return work / f"{source.name}-{type.upper()}.gguf"


def _write_modelfile(source: Source, work: Path, types: Sequence[str]) -> None:
    """For the smallest file: whoever runs Ollama wants that one."""
    smallest = min(types, key=lambda type: _file(source, work, type).stat().st_size)
    text = modelfile(
        _file(source, work, smallest).name,
        chat_template=source.chat_template,
        end_of_turn=str(source.tokenizer.eos_token),
        context=int(source.weights.config.get("max_position_embeddings", 2048)),
        generation=source.generation,
    )
    (work / "Modelfile").write_text(text, encoding="utf-8")


def _check(source: Source, work: Path, types: Sequence[str], runtime: str) -> dict[str, Verdict]:
    asked = ask_transformers(source.model, source.tokenizer)
    verdicts = {
        type: check(_file(source, work, type), type, runtime, source.tokenizer, asked, source.ends)
        for type in types
    }
    faults = [f"{type}: {fault}" for type, one in verdicts.items() for fault in one.faults]
    if faults:
        raise CheckpointError(
            f"{runtime} doesn't read or answer as transformers does; nothing was written "
            "(--no-check writes all the same):\n  " + "\n  ".join(faults)
        )
    return verdicts


def _described(
    file: Path,
    type: str,
    packed: Mapping[str, int] | None,
    error: float | None,
    verdict: Verdict | None,
) -> File:
    from collections import Counter

    from gguf import GGUFReader

    tensors = GGUFReader(file).tensors
    return File(
        file=file.name,
        type=type,
        bytes=file.stat().st_size,
        bits_per_weight=8
        * sum(int(one.n_bytes) for one in tensors)
        / sum(int(one.n_elements) for one in tensors),
        sha256=sha256(file),
        tensors=packed or dict(Counter(one.tensor_type.name for one in tensors)),
        error=error,
        check=verdict,
    )


def _size(source: Source, type: str) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if source.layout is None:
        width = {"f32": 4, "f16": 2}[type]
        return sum(one.size * width for one in source.weights.entries.values())
    shapes = {one.name: one.shape for one in source.layout.tensors}
    if type in EXACT:
        kinds = {name: type.upper() for name, shape in shapes.items() if len(shape) > 1}
    else:
        kinds = types_of(shapes, type)
    total = 0
    for name, shape in shapes.items():
        block, width = GGML_QUANT_SIZES[GGMLQuantizationType[kinds.get(name, "F32")]]
        total += math.prod(shape) // block * width
    return total


def _require_room(out: Path, source: Source, types: Sequence[str]) -> None:
    base = [] if set(types) & set(EXACT) else ["f16"]
    needed = sum(sizes(source, [*types, *base]).values())
    place = next(one for one in (out, *out.absolute().parents) if one.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise CheckpointError(
            f"{out}: {needed / 1e9:.2f} GB to write, {free / 1e9:.2f} GB free; make room first"
        )
