"""`dualign adapter soup | compress | extract | fold`."""

import argparse
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dualign.cli.parsers import Sub, command
from dualign.errors import ConfigError

_ADAPTER = """\
Adapters are added, truncated and folded by their change of the weights, s B A, never factor by factor.
Outputs load with PeftModel.from_pretrained. Next to them, adapter.json has the hashes of the inputs and
the error of each module.
"""
_SOUP = """\
Without --rank the sum is exact: the ranks are concatenated. With --rank, the nearest adapter of that
rank is written and its error printed. A module that an adapter lacks is not changed by it.

  dualign adapter soup runs/a runs/b OUT                         the mean of two
  dualign adapter soup runs/a runs/b OUT --weights 1,-0.5        any sum
  dualign adapter soup runs/a runs/b OUT --rank 16               cut to rank 16
  dualign adapter soup runs/a runs/b OUT --method ties --set density=0.5 --rank 32
"""
_COMPRESS = """\
The nearest adapter of a lower rank. What is kept whole (modules_to_save, trained tokens) stays as it is.
"""
_EXTRACT = """\
Writes the difference of two checkpoints as an adapter. Linear layers are cut to a rank; other weights
that changed (norms, embeddings) are kept whole.

  dualign adapter extract BASE TUNED OUT --rank 64
  dualign adapter extract BASE TUNED OUT --energy 0.99           as many ranks as hold 99 % of each difference
"""
_FOLD = """\
Writes base plus adapter as a plain model, block by block: memory doesn't grow with the model.

An adapter that was trained by QLoRA saw NF4 weights. It can be folded into the 16-bit weights, or into
their NF4 values. Both are compared with the live adapter (the NF4 model is loaded on the CPU), and
without --base the nearer one is kept.
"""


def add(sub: Sub) -> None:
    """Add the group and its commands."""
    group = command(sub, "adapter", "add up, cut, extract or fold LoRA adapters", _ADAPTER)

    def show_help(_: Namespace) -> int:
        group.print_help()
        return 0

    group.set_defaults(action=show_help)
    inner = group.add_subparsers(metavar="WHAT", title="what")
    _add_soup(inner)
    _add_compress(inner)
    _add_extract(inner)
    _add_fold(inner)


def _add_soup(sub: Sub) -> None:
    parser = command(sub, "soup", "several adapters of one base as one", _SOUP)
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER", help="folders or hub ids")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument("--weights", metavar="W,W", help="one for each; default: the mean")
    parser.add_argument(
        "--method", default="linear", help="linear (default), ties, dare_ties, della, sce, ..."
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=V",
        help="a parameter of the method; V,V for each adapter",
    )
    _add_cut(parser, required=False)
    parser.add_argument(
        "--seed", type=int, default=0, help="of methods that draw at random; default 0"
    )
    parser.add_argument(
        "--tokenizer-from", metavar="ADAPTER", help="whose tokenizer and template, if they differ"
    )
    _add_output(parser, _soup)


def _add_compress(sub: Sub) -> None:
    parser = command(sub, "compress", "one adapter at a lower rank", _COMPRESS)
    parser.add_argument("adapter", metavar="ADAPTER", help="a folder or hub id")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    _add_cut(parser, required=True)
    _add_output(parser, _compress)


def _add_extract(sub: Sub) -> None:
    parser = command(sub, "extract", "an adapter from two checkpoints", _EXTRACT)
    parser.add_argument("base", metavar="BASE", help="a model folder or hub id: the adapter's base")
    parser.add_argument("tuned", metavar="TUNED", help="a model or adapter folder, or a hub id")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    _add_cut(parser, required=True)
    parser.add_argument(
        "--embedding",
        choices=("save", "lora"),
        default="save",
        help="keep a changed embedding whole (default), or cut it",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the range finder for large layers; default 0"
    )
    _add_output(parser, _extract)


def _add_fold(sub: Sub) -> None:
    parser = command(sub, "fold", "an adapter into its base", _FOLD)
    parser.add_argument("adapter", metavar="ADAPTER", help="a folder or hub id")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--model", metavar="BASE", help="the base, if not the one that the adapter names"
    )
    parser.add_argument("--base", choices=("16bit", "nf4"), help="which weights it is folded into")
    parser.add_argument(
        "--dtype",
        choices=("input", "float32", "bfloat16", "float16"),
        default="input",
        help="default: as the base",
    )
    parser.add_argument(
        "--trained-dtype",
        choices=("float32", "bfloat16", "float16"),
        help="the type the base was loaded in for QLoRA; default: run.json's, or the base's",
    )
    parser.add_argument(
        "--no-gap", action="store_true", help="don't load the live model; --base decides"
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="texts to measure on, one on each line; default: 8 questions",
    )
    _add_output(parser, _fold)


def _add_cut(parser: argparse.ArgumentParser, *, required: bool) -> None:
    cut = parser.add_mutually_exclusive_group(required=required)
    cut.add_argument("--rank", type=int, metavar="R", help="keep R ranks in each module")
    cut.add_argument(
        "--energy",
        type=float,
        metavar="E",
        help="keep the share E of each module's square, e.g. 0.99",
    )


def _add_output(parser: argparse.ArgumentParser, action: Callable[[Namespace], int]) -> None:
    parser.add_argument("--force", action="store_true", help="replace OUT when it is there")
    parser.set_defaults(action=action)


def _soup(args: Namespace) -> int:
    """`dualign adapter soup A B OUT`."""
    from dualign.merging.adapters.soup import SoupConfig, make_soup

    config = SoupConfig(
        adapters=tuple(map(_folder, args.adapters)),
        weights=_numbers("--weights", args.weights) if args.weights else None,
        method=args.method,
        parameters=dict(map(_parameter, args.set)),
        truncation=_truncation(args),
        seed=args.seed,
        tokenizer_from=_folder(args.tokenizer_from) if args.tokenizer_from else None,
    )
    return _say(make_soup(config, Path(args.out), force=args.force), args.out)


def _compress(args: Namespace) -> int:
    """`dualign adapter compress ADAPTER OUT --rank R`: a soup of one."""
    from dualign.merging.adapters.soup import SoupConfig, make_soup

    config = SoupConfig(adapters=(_folder(args.adapter),), truncation=_truncation(args))
    return _say(make_soup(config, Path(args.out), force=args.force), args.out)


def _extract(args: Namespace) -> int:
    """`dualign adapter extract BASE TUNED OUT --rank R`."""
    from dualign.merging.adapters.extract import ExtractConfig, extract_adapter

    truncation = _truncation(args)
    assert truncation is not None
    config = ExtractConfig(
        base=args.base,
        tuned=args.tuned,
        truncation=truncation,
        embedding=args.embedding,
        seed=args.seed,
    )
    return _say(extract_adapter(config, Path(args.out), force=args.force), args.out)


def _fold(args: Namespace) -> int:
    """`dualign adapter fold ADAPTER OUT`."""
    from dualign.cli.commands import say
    from dualign.merging.adapters.fold import FoldConfig, fold_adapter, read_prompts, summary

    prompts = {"prompts": read_prompts(Path(args.prompts))} if args.prompts else {}
    config = FoldConfig(
        adapter=args.adapter,
        model=args.model,
        base=args.base,
        dtype=args.dtype,
        trained_dtype=args.trained_dtype,
        measure=not args.no_gap,
        **prompts,
    )
    record = fold_adapter(config, Path(args.out), force=args.force)
    about = record["fold"]
    if "gaps" in about:
        say("\n".join(["from the live adapter on NF4:", *summary(about["gaps"])]))
        say(f"nearer: {about['recommended']}")
    say(f"{args.out}: folded into the {about['base']} weights, {record['bytes'] / 1e9:.2f} GB")
    return 0


def _folder(name: str) -> Path:
    from dualign.checkpoints.weights import find_folder

    return find_folder(name)


def _truncation(args: Namespace) -> Any:
    from dualign.merging.adapters.lowrank import Truncation

    if args.rank is None and args.energy is None:
        return None
    return Truncation(rank=args.rank, energy=args.energy)


def _parameter(text: str) -> tuple[str, tuple[float, ...]]:
    name, equals, values = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected NAME=VALUE, such as density=0.5")
    return name, _numbers(f"--set {name}", values)


def _numbers(where: str, text: str) -> tuple[float, ...]:
    words = {"true": 1.0, "false": 0.0}
    try:
        return tuple(words[word] if word in words else float(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(
            f"{where}: expected numbers with commas between, found {text!r}"
        ) from None


def _say(record: Mapping[str, Any], out: str) -> int:
    from dualign.cli.commands import say

    modules = record["modules"]
    ranks = sorted({module["rank"] for module in modules.values()})
    shown = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    say(f"{out}: {len(modules)} modules, {shown}; relative error {record['error']:.2e}")
    worst = sorted(modules, key=lambda path: -modules[path]["error"])[:3] if record["error"] else []
    for path in worst:
        say(f"  {modules[path]['error']:.2e}  {path}")
    if record["error_by_rank"]:
        errors = (f"{rank}: {error:.1e}" for rank, error in record["error_by_rank"].items())
        say(f"cut at rank ... the error is: {', '.join(errors)}")
    if record.get("whole"):
        say(
            f"kept whole: {len(record['whole'])} modules that aren't linear, {record['whole'][0]} first"
        )
    return 0
