"""`dualign COMMAND ...`: the parser of each command, and the exit status."""

import argparse
import gc
import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

from dualign import stages
from dualign.cli import (
    adapter,
    commands,
    compare,
    experiment,
    export,
    importing,
    merge,
    prepare,
    probe,
    publish,
    storage,
    sweep,
)
from dualign.cli.parsers import RECIPE_HELP, Sub, command, parsed
from dualign.errors import DualignError
from dualign.generation.config import Backend
from dualign.libraries import quiet_libraries
from dualign.lifetime import fail_as_rank, is_rank
from dualign.version import __version__

_ABOUT = """\
Turn a language model into a dual-mode checkpoint: one set of weights that reasons aloud on
/think and answers at once on /no_think. The pipeline: SFT on mixed reasoning and non-reasoning
traces -> APO preference optimization -> merging -> evaluation in both modes -> a report.
"""
_EXAMPLES = """\
start here:
  dualign recipes list                     the recipes that ship
  dualign plan quickstart                  show its stages, rows, tokens, steps and memory
  dualign run quickstart                   run the whole pipeline on a 135M model, on a laptop
  dualign chat runs/quickstart/merged      talk to the result; /think and /no_think switch

any key of a recipe can be set on the command line:
  dualign run quickstart sft.train.learning_rate=5e-4 output_dir=runs/mine

many GPUs, one stage at a time:
  accelerate launch --config_file zero3.yaml -m dualign sft smollm3/sft.yaml
"""


# As for a process that SIGPIPE ends. Not 0: a launcher would take a rank for finished, and the other
# ranks would wait for it.
_READER_GONE = 128 + signal.SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0: done. 1: a check failed. 2: a mistake that the user can fix. 130: interrupted. 141: nobody
    reads what is printed any more.
    """
    parser = _parser()
    args = parsed(parser, arguments)
    if "action" not in args:
        parser.print_help()
        return 0
    _quiet()
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer or a path may hold what it can't show
        sys.stdout.reconfigure(errors="backslashreplace")
    # Importing torch and transformers makes half a million objects that stay. At the default
    # threshold, collections among them take a tenth of the import time.
    gc.set_threshold(50_000)
    try:
        return int(args.action(args))
    except DualignError as error:
        print(f"error: {error}", file=sys.stderr)
        for line in commands.advice(error, args):
            print(line, file=sys.stderr)
        fail_as_rank(error, 2)
        return 2
    except BrokenPipeError:  # the reader of a pipe, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_GONE
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130
    except Exception as error:
        if is_rank():
            traceback.print_exc()
            fail_as_rank(error, 1)
        raise


def _quiet() -> None:
    """Print our messages as plain lines, and of the libraries' only those a user can act on."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("dualign").setLevel(logging.INFO)
    quiet_libraries()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if not sys.stderr.isatty():  # a bar would be hundreds of lines in a log; ours become a few
        for name in (
            "TQDM_DISABLE",
            "HF_HUB_DISABLE_PROGRESS_BARS",
            "HF_DATASETS_DISABLE_PROGRESS_BARS",
        ):
            os.environ.setdefault(name, "1")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dualign",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dualign {__version__}")
    sub = parser.add_subparsers(metavar="COMMAND", title="commands")
    run_parser = _recipe_command(sub, "run", _RUN_ABOUT, _RUN, commands.run)
    run_parser.add_argument(
        "--machine-rank",
        type=int,
        metavar="N",
        help="the number of this machine of several, from 0; srun and SkyPilot say it themselves",
    )
    plan_parser = _recipe_command(sub, "plan", _PLAN_ABOUT, _PLAN, commands.plan)
    plan_parser.add_argument(
        "--measure",
        action="store_true",
        help="train a few steps of each stage that isn't done, and reckon its time from them",
    )
    plan_parser.add_argument(
        "--on",
        metavar="CARDS",
        help="plan for cards that aren't here: 8xH100, 2x8xH100 (2 nodes), 4090",
    )
    plan_parser.add_argument(
        "--price", metavar="P", type=float, help="with --on: the price of one card for one hour"
    )
    for kind in stages.STAGE_KINDS:
        if kind.command and kind.about:
            action = partial(commands.run_stage, kind=kind.name)
            stage_parser = _recipe_command(sub, kind.command, kind.about, _STAGE, action)
            stage_parser.add_argument(
                "--stage", metavar="NAME", help="which stage of a pipeline recipe"
            )
    merge.add(sub)
    adapter.add(sub)
    export.add(sub)
    sweep.add(sub)
    experiment.add(sub)
    _eval_command(sub)
    compare.add(sub)
    _chat_command(sub)
    _report_command(sub)
    publish.add(sub)
    _inspect_command(sub)
    prepare.add(sub)
    _doctor_command(sub)
    _recipes_command(sub)
    importing.add(sub)
    storage.add(sub)
    return parser


_RUN_ABOUT = "run the stages of a recipe, skipping finished ones"
_RUN = """\
Runs the stages in order. OUTPUT_DIR/STAGE appears when a stage is complete. After a crash, run the
same command again: finished stages are skipped, and the interrupted one resumes from its last
checkpoint. A stage whose settings, data or parents changed runs again, and so do the stages that
depend on it.
"""
_PLAN_ABOUT = "show stages, rows, tokens, steps, memory and time; writes nothing"
_PLAN = """\
Prints what `dualign run` would do and what it would cost. Nothing is written, and nothing trained
unless --measure asks for a few steps; their speed is remembered for later plans of this machine.

--on plans for other cards than those of this machine, from their data sheets: memory of a card, time,
tokens per second, the next two ways that need less memory, and what was assumed:

  dualign plan RECIPE --on 8xH100 --price 2.5   one node; a card-hour costs 2.5
  dualign plan RECIPE --on 2x8xH100             two nodes of eight
  dualign plan RECIPE --on 4090                 one card

Cards: b200 h200 h100 h100-pcie a100 a100-40 a100-pcie mi300x l40s l4 a10g 5090 4090 3090 t4.
docs/scale.md holds the figures against published ones.
"""
_STAGE = """\
RECIPE is a stage recipe or a pipeline recipe. If it has several stages of this kind, choose one with
--stage NAME.
"""
_DOCTOR = """\
Reads every row as training does and collects all faults instead of stopping at the first: masks,
modes, templates, tokens, what one stage of a recipe leaves for the next, and saved models. Each
finding says what it means for the model and how to fix it; docs/doctor.md lists them. The exit
status is 1 if one of them is an error.
"""

_SWITCH = (
    "what switches the modes, as in a recipe: '{think: {thinking: true}, no_think: {thinking: false}}'; "
    "default: what the template reads"
)


_MODEL = (
    "a run directory, model folder or hub id; or an endpoint: its address (http://127.0.0.1:8080/v1) or "
    "its keys ('{url: ..., name: ..., key_env: ...}')"
)


def _recipe_command(
    sub: Sub, name: str, about: str, detail: str, action: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser = command(sub, name, about, detail)
    parser.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="set a key, e.g. sft.train.learning_rate=1e-4",
    )
    parser.set_defaults(action=action)
    return parser


def _eval_command(sub: Sub) -> None:
    detail = "Writes OUT/metrics.json, OUT/table.md and OUT/samples.jsonl, and prints the table with 95 % intervals."
    parser = command(sub, "eval", "evaluate a checkpoint in both modes", detail)
    parser.add_argument("model", metavar="MODEL", nargs="?", help=_MODEL)
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="TASK",
        help="a task file, or SOURCE:NAME such as lm_eval:gsm8k; repeatable",
    )
    probe.add(parser)
    parser.add_argument(
        "--suite",
        metavar="NAME",
        help="a suite of benchmarks with its settings, such as smollm3; --list shows them",
    )
    parser.add_argument("--out", metavar="DIR", help="where the results go")
    parser.add_argument(
        "--list",
        nargs="?",
        const="",
        metavar="PATTERN",
        dest="pattern",
        help="print the names of benchmarks that have PATTERN in them, and do nothing else",
    )
    parser.add_argument(
        "--rows", type=int, metavar="N", help="at most N rows of each task (a seeded sample)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="default the suite's, else 512"
    )
    parser.add_argument(
        "--temperature", type=float, help="0 is greedy; default the suite's, else 0"
    )
    parser.add_argument("--top-p", type=float, help="default the suite's, else 1")
    parser.add_argument(
        "--budgets",
        metavar="N,N,none",
        help="also close traces after so many tokens, as in 0,128,512,none, and answer from there",
    )
    parser.add_argument(
        "--samples", type=int, metavar="K", help="answers to each problem; default 1"
    )
    parser.add_argument(
        "--temperature-no-think", type=float, metavar="T", help="default that of think mode"
    )
    parser.add_argument(
        "--samples-no-think", type=int, metavar="K", help="default that of think mode"
    )
    parser.add_argument("--backend", choices=get_args(Backend), default="transformers")
    parser.add_argument("--switch", metavar="YAML", help=_SWITCH)
    parser.add_argument("--seed", type=int, default=42, help="default %(default)s")
    parser.set_defaults(action=commands.evaluate)


def _chat_command(sub: Sub) -> None:
    detail = (
        "In the conversation: /think and /no_think switch the mode, /budget N closes traces after N tokens, "
        "/reset forgets, /quit ends."
    )
    parser = command(sub, "chat", "talk to a checkpoint in the terminal", detail)
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument(
        "--mode", choices=("think", "no_think"), default="think", help="default %(default)s"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=512, metavar="N", help="default %(default)s"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.6, help="0 is greedy; default %(default)s"
    )
    parser.add_argument(
        "--budget", type=int, metavar="N", help="close traces after N tokens, and answer"
    )
    parser.add_argument("--switch", metavar="YAML", help=_SWITCH)
    parser.set_defaults(action=commands.chat)


def _report_command(sub: Sub) -> None:
    detail = (
        "Writes report.html (one self-contained file) and report.md into the recipe's output_dir."
    )
    parser = command(sub, "report", "write the report of a pipeline that has run", detail)
    parser.add_argument("recipe", metavar="RECIPE", help="the recipe that was run")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="the overrides that it was run with"
    )
    parser.set_defaults(action=commands.report)


def _inspect_command(sub: Sub) -> None:
    detail = (
        "Supervised tokens are colored (in a pipe: between \u27e6 and \u27e7), special tokens visible; a "
        "table counts rows and tokens."
    )
    parser = command(sub, "inspect", "show a stage's rows as the model gets them", detail)
    parser.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="set a key of the recipe")
    parser.add_argument("--stage", metavar="NAME", help="which training stage; default: the first")
    parser.add_argument(
        "--rows", type=int, default=2, metavar="N", help="rows shown per source and mode"
    )
    parser.add_argument(
        "--html", metavar="FILE", help="write a page with lengths and samples instead"
    )
    parser.set_defaults(action=commands.inspect)


def _doctor_command(sub: Sub) -> None:
    parser = command(sub, "doctor", "check data, template and saved model", _DOCTOR)
    parser.add_argument(
        "target",
        nargs="?",
        metavar="RECIPE|MODEL_DIR|DATA",
        help="a recipe; a model, adapter or run directory; a data file, folder, glob or hub id; "
        "without it rows of ten kinds are tried on the template alone",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="set a key of a recipe")
    parser.add_argument("--template", metavar="NAME", help="for DATA, or alone; default dualign")
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="of the template; default: that of the embedded model"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=2048, metavar="N", help="for DATA; default %(default)s"
    )
    parser.add_argument(
        "--split", default="train", metavar="NAME", help="for DATA; default %(default)s"
    )
    parser.add_argument(
        "--switch", metavar="YAML", help=f"for DATA, or a template alone: {_SWITCH}"
    )
    parser.add_argument(
        "--tensors", action="store_true", help="for MODEL_DIR: read all weights, for NaN"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.set_defaults(action=commands.doctor)


def _recipes_command(sub: Sub) -> None:
    parser = command(
        sub,
        "recipes",
        "list, show or copy the recipes that ship; list the keys of a stage",
        "dualign recipes keys sft       list the keys of an sft stage: names, types, defaults",
    )
    parser.add_argument(
        "what",
        choices=("list", "show", "copy", "keys"),
        help="copy makes a folder to edit; keys lists the keys of a stage",
    )
    parser.add_argument(
        "name",
        nargs="?",
        help="a recipe, e.g. quickstart or smollm3/sft.yaml; for keys: a kind, e.g. sft",
    )
    parser.add_argument("target", nargs="?", help="for copy: the folder to make; default ./NAME")
    parser.set_defaults(action=commands.recipes)
