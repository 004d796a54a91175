"""`dualign export`."""

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from dualign.cli.parsers import Sub, command
from dualign.errors import ConfigError
from dualign.export.compressed.types import CALIBRATION_ROWS, ROWS, TYPES
from dualign.libraries import hold_bars

if TYPE_CHECKING:
    from dualign.export.comparison import ComparisonConfig
    from dualign.export.imatrix import ImportanceConfig

_EXPORT = """\
Writes OUT/NAME-F16.gguf, NAME-Q8_0.gguf, NAME-Q4_K_M.gguf (for llama.cpp, LM Studio, ...), a
Modelfile for Ollama, and export.json with hashes and the check. An adapter is folded into its base.
The check loads the files in llama.cpp and compares their answers in both modes with those of
transformers. OUT appears if they agree.

With --type bf16, fp8, int8, gptq, awq or nvfp4, OUT is a checkpoint for vLLM instead, in
compressed-tensors' form. gptq and awq read rows of both modes that the model was trained on.

Both modes of what has fewer bits are then asked the tasks of the model's run, or its held-out rows,
beside the model itself; OUT appears if neither is worse beyond a bound (docs/export.md).

  dualign export runs/quickstart/merged gguf
  llama-server -m gguf/merged-Q4_K_M.gguf --jinja
  cd gguf && ollama create mine -f Modelfile && ollama run mine --think=false
  dualign export runs/quickstart/merged fp8 --type fp8
"""


def add(sub: Sub) -> None:
    """Add the command."""
    parser = command(
        sub, "export", "write a checkpoint for vLLM, or GGUF files and an Ollama Modelfile", _EXPORT
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a run directory, model folder, adapter or hub id"
    )
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--type",
        "--types",
        dest="types",
        default="f16,q8_0,q4_k_m",
        metavar="LIST",
        help=f"one of {', '.join(TYPES)}, for vLLM; or some of f32, f16, q8_0, q6_k, q5_k_m, q4_k_m, "
        "iq4_xs, q3_k_m, q2_k, ... for llama.cpp (all of its types for dense models: docs/export.md); "
        "default %(default)s",
    )
    parser.add_argument(
        "--imatrix",
        nargs="?",
        const="",
        metavar="FILE",
        help="quantize GGUF types by an importance matrix: llama-imatrix's file, or without FILE measured "
        "on the rows of both modes that the model was trained on",
    )
    parser.add_argument("--name", help="what the files are called; default: the model's folder")
    parser.add_argument(
        "--converter",
        choices=("auto", "llama.cpp", "dualign"),
        default="auto",
        help="auto: llama.cpp's own in $LLAMA_CPP_DIR or on the PATH, else dualign's",
    )
    parser.add_argument(
        "--runtime",
        choices=("auto", "xllamacpp", "llama-cpp-python"),
        default="auto",
        help="what the check loads the files in; auto: the first that is installed",
    )
    parser.add_argument(
        "--no-check", action="store_true", help="don't load or compare what was written"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show sizes, and of types for vLLM the rows and tasks; write nothing",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT when it is there")
    _add_compressed(parser)
    parser.set_defaults(action=_export)


def _add_compressed(parser: ArgumentParser) -> None:
    """Add what quantized exports are calibrated and compared by."""
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="of gptq and awq: rows of both modes, in any shape that training reads; default: those of the "
        "model's SFT stage",
    )
    parser.add_argument(
        "--calibration-rows",
        type=int,
        metavar="N",
        help=f"how many of them; default {CALIBRATION_ROWS}",
    )
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="FILE",
        help="what the model and its quantized copy are asked; default: the tasks of the model's run, else "
        "its held-out rows",
    )
    parser.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help=f"problems of each task, or held-out rows of each mode; default {ROWS}",
    )
    parser.add_argument(
        "--allow-worse",
        action="store_true",
        help="write OUT although a mode is worse than the bound",
    )


def _export(args: Namespace) -> int:
    """`dualign export MODEL OUT`."""
    hold_bars()
    from dualign.cli.commands import say
    from dualign.export.writer import EXACT
    from dualign.terminal import wide_console

    out = Path(args.out)
    if out.suffix == ".gguf":
        raise ConfigError(
            f"{out}: OUT is a folder; files in it are called after MODEL, or after --name"
        )
    if args.rows is not None and args.rows < 1:
        raise ConfigError(f"--rows: expected 1 or more, found {args.rows}")
    types = [name for name in args.types.lower().split(",") if name]
    compressed = [name for name in types if name in TYPES]
    # bf16 is both: a checkpoint alone, and a GGUF file beside others.
    if compressed and not (len(types) > 1 and set(compressed) == {"bf16"}):
        if len(types) > 1:
            raise ConfigError(
                f"--type {args.types}: {compressed[0]} is a checkpoint in a folder of its own; export one "
                "type at a time"
            )
        return _export_compressed(args, out, compressed[0])
    if set(types) <= set(EXACT) and (args.task or args.rows is not None or args.allow_worse):
        raise ConfigError(
            "--task, --rows, --allow-worse: files of f32, f16 and bf16 are checked exactly, and nothing is "
            "compared: leave them out, or add a quantized type"
        )
    importance = _importance(args)
    if args.dry_run:
        say(_dry_run(args, types))
        return 0
    from dualign.export.export import export as write
    from dualign.export.show import closing, summary

    result = write(
        args.model,
        out,
        types=types,
        name=args.name,
        importance=importance,
        converter=args.converter,
        runtime=None if args.no_check else args.runtime,
        comparison=_comparison(args),
        force=args.force,
    )
    wide_console().print(summary(result))
    say(closing(result, out))
    return 0


def _export_compressed(args: Namespace, out: Path, type: str) -> int:
    """`dualign export MODEL OUT --type` of a type for vLLM."""
    from dualign.cli.commands import say
    from dualign.export.compressed.export import (
        CalibrationConfig,
        export_compressed,
        plan_compressed,
    )
    from dualign.export.show_modes import modes_summary, verdict
    from dualign.terminal import wide_console

    of_gguf = {
        "--imatrix": args.imatrix is not None,
        "--name": args.name is not None,
        "--converter": args.converter != "auto",
        "--runtime": args.runtime != "auto",
    }
    if flags := [flag for flag, is_there in of_gguf.items() if is_there]:
        raise ConfigError(f"{', '.join(flags)}: for GGUF types, found --type {type}; leave it out")
    calibrates = args.calibration or args.calibration_rows is not None
    if calibrates and not TYPES[type].calibrated:
        raise ConfigError(f"--type {type} reads no rows: leave --calibration out")
    rows = CalibrationConfig(
        file=args.calibration,
        rows=CALIBRATION_ROWS if args.calibration_rows is None else args.calibration_rows,
    )
    if args.dry_run:
        plan = plan_compressed(args.model, type=type, rows=rows, comparison=_comparison(args))
        say(f"writes    {out}: {TYPES[type].about}, {plan.bytes / 1e6:.4g} MB of weights")
        say("\n".join(plan.lines()))
        return 0
    result = export_compressed(
        args.model,
        out,
        type=type,
        rows=rows,
        comparison=_comparison(args),
        force=args.force,
    )
    if result.both_modes is not None:
        wide_console().print(modes_summary(result.both_modes))
    say(verdict(type, result.both_modes))
    say(
        f"written to {out}: {result.bytes / 1e6:.4g} MB of weights, config.json, tokenizer, export.json"
    )
    say(f"next: vllm serve {shlex.quote(str(out))}")
    return 0


def _comparison(args: Namespace) -> "ComparisonConfig | None":
    """Return what both modes are compared by; None with --no-check."""
    from dualign.export.comparison import ComparisonConfig

    if args.no_check:
        if args.task or args.rows is not None or args.allow_worse:
            raise ConfigError(
                "--task, --rows, --allow-worse: --no-check compares nothing; leave one of them out"
            )
        return None
    rows = ROWS if args.rows is None else args.rows
    return ComparisonConfig(tasks=tuple(args.task), rows=rows, allow_worse=args.allow_worse)


def _importance(args: Namespace) -> "ImportanceConfig | None":
    """Return where the importance matrix of GGUF types is from; None without one."""
    from dualign.export.imatrix import ImportanceConfig

    names_rows = args.calibration is not None or args.calibration_rows is not None
    if args.imatrix is None:
        if names_rows:
            raise ConfigError("--calibration: GGUF types read no rows without --imatrix; add it")
        return None
    if args.imatrix and names_rows:
        raise ConfigError(
            f"--imatrix {args.imatrix} is measured already: leave out that file, or --calibration"
        )
    rows = CALIBRATION_ROWS if args.calibration_rows is None else args.calibration_rows
    return ImportanceConfig(file=args.imatrix or None, calibration=args.calibration, rows=rows)


def _dry_run(args: Namespace, types: list[str]) -> str:
    from dualign.export.export import choose_converter, choose_runtime, require_types, sizes
    from dualign.export.model_source import open_source

    command = choose_converter(args.converter)
    source = open_source(args.model, name=args.name, foreign=command is not None)
    require_types(source, types, importance=args.imatrix is not None)
    runtime = None if args.no_check else choose_runtime(args.runtime)
    lines = [f"converter {command[-1] if command else 'dualign'}"]
    lines += [
        f"writes    {source.name}-{type.upper()}.gguf, about {size / 1e6:.3g} MB and the vocabulary"
        for type, size in sizes(source, types).items()
    ]
    return "\n".join([*lines, f"check     {runtime or 'none'}"])
