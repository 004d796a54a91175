"""The main path: checkpoint -> f16 GGUF -> smaller files -> Modelfile -> check -> finished folder.

dualign export runs/quickstart/merged gguf --types f16,q8_0,q4_k_m
"""

import logging
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.checkpoints.context import positions_of
from dualign.errors import CheckpointError, ConfigError
from dualign.export import llama_runtime
from dualign.export.both_modes import BothModes, Questions
from dualign.export.check import CheckResult, ask_transformers, check
from dualign.export.comparison import ComparisonConfig, compare_exports, plan_questions
from dualign.export.convert import SCRIPTS, find_converter, write_exact
from dualign.export.dequantized import dequantized
from dualign.export.imatrix import ImportanceConfig, ImportanceFile, make_importance
from dualign.export.mixtures import MIXTURES, needing_importance, types_of
from dualign.export.model_source import ExportSource, open_source
from dualign.export.modelfile import modelfile
from dualign.export.quantize import needs_library, quantize
from dualign.export.writer import EXACT
from dualign.hashing import hashes_of, sha256
from dualign.rundir import new_folder, require_new, write_json
from dualign.version import __version__

if TYPE_CHECKING:
    from dualign.evaluation.config import EvalConfig

logger = logging.getLogger(__name__)

TYPES = (*EXACT, *MIXTURES)
_BELOW_FOUR_BITS = ("q3", "q2", "iq3", "iq2", "iq1")
_RECORD = "export.json"
_RECORD_KEYS = {"fixed_fields": "mended", "actual": "found"}
"""Fields that export.json has under other names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportFile:
    """One file of an export."""

    file: str
    type: str
    bytes: int
    bits_per_weight: float
    sha256: str
    tensors: Mapping[str, int]
    """number of tensors of each type"""
    error: float | None
    """relative change of the weights by quantization; None for f32, f16 and bf16"""
    check: CheckResult | None
    both_modes: BothModes | None = None
    """None: not compared, as f32, f16 and bf16"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult:
    """Content of export.json."""

    model: str
    weights: Mapping[str, str]
    """weight files that it was made from, with their SHA-256"""
    converter: str
    fixed_fields: tuple[str, ...]
    """settings of llama.cpp's converter that were corrected"""
    files: tuple[ExportFile, ...]
    importance: Mapping[str, Any] | None = None
    """the importance matrix: its file, and the rows and tokens of each mode that it was measured on"""


def export(
    model: str,
    out: Path,
    *,
    types: Sequence[str] = ("f16", "q8_0", "q4_k_m"),
    name: str | None = None,
    importance: ImportanceConfig | None = None,
    converter: str = "auto",
    runtime: str | None = "auto",
    comparison: ComparisonConfig | None = None,
    force: bool = False,
) -> ExportResult:
    """Write NAME-TYPE.gguf for each type, a Modelfile and export.json into `out`.

    `out` appears once everything is written, checked and compared.

    Args:
        importance: quantize with an importance matrix, and leave it in `out`, too.
        converter: `llama.cpp`, `dualign`, or `auto`: llama.cpp's if it is installed.
        runtime: the one that loads the files and answers: a name of `llama_runtime.RUNTIMES`,
            `auto`: the first that is installed, or None: check nothing.
        comparison: what the model and its quantized files are asked in both modes. They aren't
            without tasks, of a model whose run has neither tasks nor held-out rows.

    Raises:
        DualignError: the model can't be exported as it is, llama.cpp answers otherwise, or a mode is
            worse beyond the bounds.
    """
    require_new(out, force=force)
    command = choose_converter(converter)
    source = open_source(model, name=name, foreign=command is not None)
    require_types(source, types, importance=importance is not None)
    _require_room(out, source, types)
    runtime = choose_runtime(runtime)
    questions = _questions(source, types, comparison)
    with new_folder(out, force=force) as work:
        result = _write(source, work, types, importance, command, runtime)
        if comparison is not None and questions is not None:
            result = _compare(result, source, work, questions, comparison)
        write_json(work / _RECORD, {"schema": 1, "dualign": __version__, **_record(result)})
    return result


def _record(result: ExportResult) -> dict[str, Any]:
    def renamed(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {_RECORD_KEYS.get(key, key): value for key, value in items}

    record = asdict(result, dict_factory=renamed)
    for entry, file in zip(record["files"], result.files, strict=True):
        entry["both_modes"] = file.both_modes and file.both_modes.record()
    return record


def choose_converter(converter: str) -> list[str] | None:
    """Return the command of llama.cpp's converter; None for dualign's."""
    if converter == "dualign":
        return None
    command = find_converter()
    if converter == "llama.cpp" and command is None:
        raise CheckpointError(
            f"llama.cpp's converter isn't here: set LLAMA_CPP_DIR to its checkout, or put {SCRIPTS[0]} on the PATH"
        )
    return command


def choose_runtime(runtime: str | None) -> str | None:
    """Return the runtime for the check; None for no check, or if `auto` finds none."""
    return runtime if runtime != "auto" else next(iter(llama_runtime.installed()), None)


def require_types(source: ExportSource, types: Sequence[str], *, importance: bool = False) -> None:
    """Refuse types that don't exist, or that can't be made of this model here."""
    if unknown := [type for type in types if type not in TYPES]:
        raise ConfigError(f"--types: unknown type {unknown[0]!r}; there are {', '.join(TYPES)}")
    if not types:
        raise ConfigError(f"--types: expected some of {', '.join(TYPES)}")
    quantized = [type for type in types if type not in EXACT]
    if importance and not [type for type in quantized if type != "q8_0"]:
        raise ConfigError(
            f"--imatrix: {', '.join(types)} take no importance matrix; expected a type below eight bits "
            "in --types"
        )
    if source.layout is not None and quantized and not importance:
        _require_importance(source, quantized)
    if source.layout is None and quantized:
        raise ConfigError(
            f"--types: for {quantized[0]} of {source.weights.config['architectures'][0]}, run "
            "llama.cpp's llama-quantize on the f16 file"
        )
    if any(map(needs_library, types)):
        from dualign.export import ggml

        ggml.library()


def _require_importance(source: ExportSource, types: Sequence[str]) -> None:
    """Refuse types of which llama.cpp makes garbage without an importance matrix."""
    assert source.layout is not None
    shapes = {tensor.name: tensor.shape for tensor in source.layout.tensors}
    for type in types:
        needing = needing_importance(types_of(shapes, type), type)
        if needing:
            raise ConfigError(
                f"--types: {type} needs an importance matrix for {needing[0]} ({len(needing)} tensors), "
                "as in llama.cpp: without one it would be garbage; add --imatrix, or take iq3_s or q2_k"
            )


def sizes(source: ExportSource, types: Sequence[str]) -> dict[str, int]:
    """Return the bytes of the tensors of each type's file; the vocabulary adds some megabytes."""
    return {type: _size(source, type) for type in types}


def _write(
    source: ExportSource,
    work: Path,
    types: Sequence[str],
    importance: ImportanceConfig | None,
    command: Sequence[str] | None,
    runtime: str | None,
) -> ExportResult:
    _warn_of_words(source)
    weights = hashes_of(source.weights.files)
    types = list(dict.fromkeys(types))
    exact = [type for type in types if type in EXACT]
    quantized = [type for type in types if type not in EXACT]
    base = "f16" if quantized else exact[0]
    fixed_fields: dict[str, None] = {}
    details: dict[str, tuple[Mapping[str, int] | None, float | None]] = {}
    for type in dict.fromkeys([*exact, base]):
        fixed_fields |= dict.fromkeys(write_exact(source, _file(source, work, type), type, command))
        details[type] = None, None
    matrix = _matrix(source, work, importance)
    for type in quantized:
        packed = quantize(
            _file(source, work, base), _file(source, work, type), type=type, importance=matrix
        )
        details[type] = packed.types, packed.error
    if base not in types:
        _file(source, work, base).unlink()
    _write_modelfile(source, work, types)
    results = _check(source, work, types, runtime) if runtime else {}
    return ExportResult(
        model=source.model,
        weights=weights,
        converter=command[-1] if command else "dualign",
        fixed_fields=tuple(fixed_fields),
        files=tuple(
            _export_file(_file(source, work, type), type, *details[type], results.get(type))
            for type in types
        ),
        importance=matrix.record if matrix else None,
    )


def _matrix(
    source: ExportSource, work: Path, config: ImportanceConfig | None
) -> ImportanceFile | None:
    if config is None:
        return None
    assert source.layout is not None, "types that take a matrix need dualign's layout"
    out = work / f"{source.name}-imatrix.gguf"
    return make_importance(source.model, source.layout, config, out)


def _warn_of_words(source: ExportSource) -> None:
    """Say which tokens llama.cpp takes where transformers doesn't: it knows no single_word."""
    added = source.tokenizer.added_tokens_decoder.values()
    words = [token.content for token in added if token.single_word]
    if words:
        logger.warning(
            "llama.cpp reads %s as a token inside of longer words, too, where transformers has pieces",
            ", ".join(map(repr, words)),
        )


def _file(source: ExportSource, work: Path, type: str) -> Path:
    return work / f"{source.name}-{type.upper()}.gguf"


def suggested_type(bytes_of: Mapping[str, int]) -> str:
    """Return the smallest type from four bits on, which suits most people best; `bytes_of`: type -> size."""
    usable = [type for type in bytes_of if not type.startswith(_BELOW_FOUR_BITS)] or [*bytes_of]
    return min(usable, key=lambda type: bytes_of[type])


def _write_modelfile(source: ExportSource, work: Path, types: Sequence[str]) -> None:
    type = suggested_type({type: _file(source, work, type).stat().st_size for type in types})
    text = modelfile(
        _file(source, work, type).name,
        chat_template=source.chat_template,
        end_of_turn=str(source.tokenizer.eos_token),
        context=positions_of(source.weights.config) or 2048,
        generation=source.generation,
    )
    (work / "Modelfile").write_text(text, encoding="utf-8")


def _check(
    source: ExportSource, work: Path, types: Sequence[str], runtime: str
) -> dict[str, CheckResult]:
    references = ask_transformers(source.model, source.tokenizer)
    results = {
        type: check(
            _file(source, work, type), type, runtime, source.tokenizer, references, source.ends
        )
        for type in types
    }
    faults = [f"{type}: {fault}" for type, result in results.items() for fault in result.faults]
    if faults:
        raise CheckpointError(
            f"{runtime} doesn't read or answer as transformers does; nothing was written "
            "(--no-check writes all the same):\n  " + "\n  ".join(faults)
        )
    return results


def _questions(
    source: ExportSource, types: Sequence[str], settings: ComparisonConfig | None
) -> "tuple[Questions, EvalConfig] | None":
    """Return what the model and its quantized files are asked; None for nothing.

    Raises:
        DualignError: the tasks can't be asked here.
    """
    if settings is None or set(types) <= set(EXACT):
        return None
    from dualign.models.loading import open_model

    questions, config = plan_questions(open_model(source.model), settings, plain=False)
    return (questions, config) if questions.tasks or questions.prompts else None


def _compare(
    result: ExportResult,
    source: ExportSource,
    work: Path,
    questions: "tuple[Questions, EvalConfig]",
    settings: ComparisonConfig,
) -> ExportResult:
    """Ask the model and its quantized files in both modes, and add the comparisons."""
    from dualign.models.loading import open_model

    quantized = [(file.type, work / file.file) for file in result.files if file.type not in EXACT]
    model = open_model(source.model, dtype="float32")
    compared = compare_exports(model, dequantized(source, quantized), *questions, settings)
    files = (replace(file, both_modes=compared.get(file.type)) for file in result.files)
    return replace(result, files=tuple(files))


def _export_file(
    file: Path,
    type: str,
    types: Mapping[str, int] | None,
    error: float | None,
    result: CheckResult | None,
) -> ExportFile:
    from gguf import GGUFReader

    tensors = GGUFReader(file).tensors
    bits = 8 * sum(int(tensor.n_bytes) for tensor in tensors)
    return ExportFile(
        file=file.name,
        type=type,
        bytes=file.stat().st_size,
        bits_per_weight=bits / sum(int(tensor.n_elements) for tensor in tensors),
        sha256=sha256(file),
        tensors=types or dict(Counter(tensor.tensor_type.name for tensor in tensors)),
        error=error,
        check=result,
    )


def _size(source: ExportSource, type: str) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if source.layout is None:
        width = {"f32": 4, "f16": 2, "bf16": 2}[type]
        return sum(entry.size * width for entry in source.weights.entries.values())
    shapes = {tensor.name: tensor.shape for tensor in source.layout.tensors}
    if type in EXACT:
        kinds = {name: type.upper() for name, shape in shapes.items() if len(shape) > 1}
    else:
        kinds = types_of(shapes, type)
    total = 0
    for name, shape in shapes.items():
        block, width = GGML_QUANT_SIZES[GGMLQuantizationType[kinds.get(name, "F32")]]
        total += math.prod(shape) // block * width
    return total


def _require_room(out: Path, source: ExportSource, types: Sequence[str]) -> None:
    base = [] if set(types) & set(EXACT) else ["f16"]
    needed = sum(sizes(source, [*types, *base]).values())
    folder = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{out}: {needed / 1e9:.2f} GB to write, {free / 1e9:.2f} GB free; make room first"
        )
