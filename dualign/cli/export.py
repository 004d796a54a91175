"""`dualign export`."""

from argparse import Namespace
from pathlib import Path

from dualign.cli.parsers import Sub, command
from dualign.errors import ConfigError

_EXPORT = """\
Writes OUT/NAME-F16.gguf, NAME-Q8_0.gguf, NAME-Q4_K_M.gguf (for llama.cpp, LM Studio, ...), a
Modelfile for Ollama, and export.json with hashes and the check. An adapter is folded into its base.
The check loads the files in llama.cpp and compares their answers in both modes with those of
transformers. OUT appears if they agree.

  dualign export runs/quickstart/merged gguf
  llama-server -m gguf/merged-Q4_K_M.gguf --jinja
  cd gguf && ollama create mine -f Modelfile && ollama run mine --think=false
"""


def add(sub: Sub) -> None:
    """Add the command."""
    parser = command(sub, "export", "write GGUF files and an Ollama Modelfile", _EXPORT)
    parser.add_argument(
        "model", metavar="MODEL", help="a run directory, model folder, adapter or hub id"
    )
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--types",
        default="f16,q8_0,q4_k_m",
        metavar="LIST",
        help="some of f32, f16, q8_0, q4_k_m; default %(default)s",
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
    parser.add_argument("--no-check", action="store_true", help="don't load what was written")
    parser.add_argument("--dry-run", action="store_true", help="show sizes; write nothing")
    parser.add_argument("--force", action="store_true", help="replace OUT when it is there")
    parser.set_defaults(action=_export)


def _export(args: Namespace) -> int:
    """`dualign export MODEL OUT`."""
    from dualign.cli.commands import say
    from dualign.terminal import wide_console

    out = Path(args.out)
    if out.suffix == ".gguf":
        raise ConfigError(
            f"{out}: OUT is a folder; files in it are called after MODEL, or after --name"
        )
    types = [name for name in args.types.lower().split(",") if name]
    if args.dry_run:
        say(_dry_run(args, types))
        return 0
    from dualign.export.export import export as write
    from dualign.export.show import summary

    result = write(
        args.model,
        out,
        types=types,
        name=args.name,
        converter=args.converter,
        runtime=None if args.no_check else args.runtime,
        force=args.force,
    )
    wide_console().print(summary(result))
    say(f"{out}: {len(result.files)} GGUF file(s), Modelfile, export.json")
    return 0


def _dry_run(args: Namespace, types: list[str]) -> str:
    from dualign.export.export import choose_converter, choose_runtime, require_types, sizes
    from dualign.export.model_source import open_source

    command = choose_converter(args.converter)
    source = open_source(args.model, name=args.name, foreign=command is not None)
    require_types(source, types)
    runtime = None if args.no_check else choose_runtime(args.runtime)
    lines = [f"converter {command[-1] if command else 'dualign'}"]
    lines += [
        f"writes    {source.name}-{type.upper()}.gguf, about {size / 1e6:.3g} MB and the vocabulary"
        for type, size in sizes(source, types).items()
    ]
    return "\n".join([*lines, f"check     {runtime or 'none'}"])
