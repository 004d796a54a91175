"""`dualign merge`, `verify` and `diff`."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from dualign.cli.parsers import Sub, command
from dualign.errors import ConfigError

_MERGE = """\
CONFIG OUT      merges as mergekit's YAML CONFIG says, into the folder OUT
RECIPE [KEY=VALUE ...]   runs the merge stage of a recipe

Everything is checked before the first byte is written, and OUT appears when it is complete. After a
crash, run the same command again: it continues after the last finished shard.
"""
_VERIFY = (
    "Checks the sha256 of every shard and input in merge.json, and computes some tensors again."
)
_DIFF = "Shows for each layer how far two checkpoints are apart, relative to the first."


def add(sub: Sub) -> None:
    """Add the three commands."""
    _add_merge(sub)
    verify_parser = command(sub, "verify", "check a merged folder against its merge.json", _VERIFY)
    verify_parser.add_argument(
        "out", metavar="OUT", help="a folder that dualign merge or adapter wrote"
    )
    verify_parser.add_argument(
        "--tensors",
        type=int,
        default=3,
        metavar="N",
        help="tensors computed again; default %(default)s",
    )
    verify_parser.set_defaults(action=_verify)
    diff_parser = command(sub, "diff", "how far two checkpoints are apart", _DIFF)
    diff_parser.add_argument("first", metavar="A", help="a model or adapter folder, or a hub id")
    diff_parser.add_argument("second", metavar="B", help="another, with the same tensors")
    diff_parser.add_argument("--tensors", action="store_true", help="one line for each tensor")
    diff_parser.add_argument("--plot", metavar="FILE", help="a picture of it, .png or .svg")
    diff_parser.set_defaults(action=_diff)


def _add_merge(sub: Sub) -> None:
    parser = command(sub, "merge", "merge checkpoints and adapters into one", _MERGE)
    parser.add_argument(
        "recipe", metavar="CONFIG", help="mergekit's YAML, or a recipe with a merge stage"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="OUT", help="the folder to write; KEY=VALUE for a recipe"
    )
    parser.add_argument("--stage", metavar="NAME", help="which stage of a pipeline recipe")
    parser.add_argument("--dry-run", action="store_true", help="check and show; write nothing")
    parser.add_argument(
        "--compat", choices=("mergekit",), help="compute with the roundings of mergekit 0.1.5"
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read pytorch_model.bin where a model has no safetensors; loads nothing but tensors",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse keys that mergekit knows and that have no effect; else they are warnings",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT when it is there")
    parser.add_argument("--seed", type=int, help="of the methods that draw at random; default 0")
    parser.add_argument("--threads", type=int, metavar="N", help="default: one for each processor")
    parser.set_defaults(action=_merge)


def _merge(args: Namespace) -> int:
    """`dualign merge CONFIG OUT`, or a stage of a recipe."""
    from dualign.merging.mergekit.load import is_merge_file

    if not is_merge_file(Path(args.recipe)):
        _require_none(args)
        from dualign.cli.commands import run_stage

        return run_stage(args, "merge")
    if args.stage:
        raise ConfigError(f"{args.recipe}: is a merge, not a recipe; it has no stages")
    return _merge_file(args)


def _require_none(args: Namespace) -> None:
    options = {"--dry-run": args.dry_run, "--force": args.force, "--threads": args.threads}
    options |= {"--seed": args.seed is not None, "--compat": args.compat is not None}
    options |= {"--allow-pickle": args.allow_pickle, "--strict": args.strict}
    used = [name for name, value in options.items() if value]
    if used:
        raise ConfigError(
            f"{used[0]}: has no effect on a recipe; `dualign plan` shows one, seed= sets its seed"
        )


def _merge_file(args: Namespace) -> int:
    from dualign.cli.commands import say
    from dualign.merging.mergekit.load import allow_pickles, load

    loaded = load(Path(args.recipe), compat=args.compat is not None, strict=args.strict)
    if args.allow_pickle:
        loaded = allow_pickles(loaded)
    seed = args.seed or 0
    if args.dry_run:
        from dualign.merging.estimate import estimate
        from dualign.merging.merge import prepare

        say(estimate(prepare(loaded, seed=seed), threads=args.threads))
        return 0
    if len(args.overrides) != 1 or "=" in args.overrides[0]:
        raise ConfigError(
            f"merge {args.recipe}: expected one folder to write, found {args.overrides or 'none'}"
        )
    from dualign.merging.output import merge_into

    out = Path(args.overrides[0])
    record = merge_into(loaded, out, seed=seed, threads=args.threads, force=args.force)
    say(_summary(record, out))
    return 0


def _summary(record: dict[str, Any], out: Path) -> str:
    lines = [
        f"{out}: {record['method']} of {len(record['models'])} models, {record['tensors']} tensors, "
        f"{record['bytes'] / 1e9:.2f} GB in {len(record['shards'])} file(s)",
        f"config from {record['config_donor']}, tokenizer from {record['tokenizer_donor']}",
    ]
    conflicts = record["decided"].items()
    lines += [f"{key}: taken from {conflict['taken_from']}" for key, conflict in conflicts]
    lines += [f"warning: {line}" for line in record["warnings"]]
    return "\n".join(lines)


def _verify(args: Namespace) -> int:
    """`dualign verify OUT`."""
    from dualign.cli.commands import say
    from dualign.merging.verify import verify_folder

    if (Path(args.out) / "adapter.json").is_file():
        from dualign.merging.adapters.output import verify_adapter

        counts = verify_adapter(Path(args.out))
        say(
            f"{args.out}: {counts['outputs']} files and {counts['inputs']} inputs have their hashes"
        )
        return 0
    verdict = verify_folder(Path(args.out), tensors=args.tensors)
    say(
        f"{args.out}: {verdict.shards} shards and {verdict.inputs} inputs have their hashes; "
        f"computed again, to the bit: {', '.join(verdict.tensors) or 'nothing'}"
    )
    return 0


def _diff(args: Namespace) -> int:
    """`dualign diff A B`."""
    from dualign.checkpoints.weights import open_weights
    from dualign.cli.commands import say
    from dualign.merging.diff import distances

    rows = distances(open_weights(args.first), open_weights(args.second), by_layer=not args.tensors)
    width = max(len(row.name) for row in rows)
    say(f"{'':{width}}  relative  1 - cosine   largest   changed")
    for row in rows:
        say(
            f"{row.name:{width}}  {row.relative:8.2e}    {1 - row.cosine:8.1e}  {row.largest:8.2e}"
            f"  {row.changed:7.2%}"
        )
    if args.plot:
        from dualign.merging.diff import plot_distances

        plot_distances(rows, Path(args.plot), title=f"{args.first} and {args.second}")
    return 0
