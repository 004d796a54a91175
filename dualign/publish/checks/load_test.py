"""What is to be published, tried in a fresh process, against what the run directory gives here."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from dualign.data.conversation import MODES
from dualign.errors import DualignError
from dualign.generation.thinking import split
from dualign.models.loading import load_checkpoint
from dualign.models.logits import (
    FLOAT32_BOUND,
    FLOOR,
    ROUNDED_BOUND,
    compare_logits,
    logits_of,
)
from dualign.publish.base import Base
from dualign.publish.checks import isolated_loader
from dualign.publish.checks.checks import Check, check
from dualign.publish.lineage import Lineage

QUESTIONS = ("What is 7 + 5?", "Which is larger, 8 or 13?")
"""Asked where no evaluation stage has problems of its own."""
ASKED = 3  # questions, each in both modes
_LIMIT = 256  # tokens of an answer, unless the evaluation allowed fewer or more
_SMALL = 4_000_000_000  # bytes of weights up to which all is computed in float32
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "SYSTEMROOT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What was said in the fresh process."""

    question: str
    mode: str
    thinking: str | None
    answer: str
    closed: bool
    leaked: bool
    finished: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """The checks that need the model, and the answers that they saw."""

    checks: tuple[Check, ...]
    answers: tuple[Answer, ...]


def try_out(
    lineage: Lineage, folder: Path, *, adapter: Path | None, base: Base | None, name: str = ""
) -> Tried:
    """Load `folder` (or `adapter` on `base`) in a fresh process, ask it, and compare with the run.

    Args:
        folder: the staged files; tokenizer and template are read from here.
        name: put after the names of the checks, where several things are tried.
    """
    questions, limit = questions_of(lineage)
    dtype = "float32" if _bytes(folder, base) <= _SMALL else "auto"
    with TemporaryDirectory(prefix="dualign-try-") as work:
        request = {
            "folder": str(folder.resolve()),
            "adapter": str(adapter.resolve()) if adapter else None,
            "base": base.where if base else None,
            "revision": base.revision if base and not base.root.is_local else None,
            "dtype": dtype,
            "questions": questions,
            "limit": limit,
            "out": f"{work}/out",
        }
        error = _run(request, Path(work))
        if error:
            return Tried(checks=_failed(error, name), answers=())
        found = json.loads(Path(work, "out.json").read_text(encoding="utf-8"))
        logits = load_file(Path(work, "out.safetensors"))
    answers = tuple(_answer(one) for one in found["answers"])
    checks = (
        check(
            f"loads{name}",
            found["faults"],
            "in plain transformers and peft, from the staged files alone",
        ),
        _logits_check(lineage, found["answers"], logits, dtype=dtype, name=name),
        modes_check(answers, name=name),
    )
    return Tried(checks=checks, answers=answers)


def _failed(error: str, name: str) -> tuple[Check, ...]:
    rest = [
        Check(name=f"{one}{name}", state="skipped", found="nothing was loaded")
        for one in ("logits", "modes")
    ]
    return Check(name=f"loads{name}", state="failed", found=error), *rest


def questions_of(lineage: Lineage) -> tuple[list[str], int]:
    """The first problem of each task that it, or a model beside it, was measured on; and the tokens of an answer."""
    for stage in lineage.problems:
        first: dict[str, str] = {}
        for sample in stage.samples:
            first.setdefault(str(sample.get("task")), str(sample.get("prompt") or ""))
        asked = [text for text in first.values() if text][:ASKED]
        if asked:
            config: Mapping[str, Any] = stage.record.get("config") or {}
            return asked, int(config.get("max_new_tokens") or _LIMIT)
    return list(QUESTIONS), _LIMIT


def _bytes(folder: Path, base: Base | None) -> int:
    place = Path(base.where) if base and base.root.is_local else folder
    return sum(one.stat().st_size for one in place.glob("*.safetensors"))


def _run(request: Mapping[str, Any], work: Path) -> str | None:
    """The error of the fresh process, or None. It sees neither our modules nor a token; hub ids come from the cache."""
    asked = work / "request.json"
    asked.write_text(json.dumps(request), encoding="utf-8")
    kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
    kept |= {key: os.environ[key] for key in os.environ if key.endswith("_NUM_THREADS")}
    if request["adapter"] and request["revision"] is not None:
        hub = {key: value for key, value in os.environ.items() if key.startswith("HF_")}
        kept |= hub  # the base may have to be fetched
    else:
        kept["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(
        [sys.executable, "-I", str(isolated_loader.__file__), str(asked)],
        cwd=work,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit status {done.returncode}"
    return f"the staged files don't load in a fresh process: {last}"


def _answer(one: Mapping[str, Any]) -> Answer:
    parsed = split(one["prompt"], one["generated"], mode=one["mode"], finished=one["finished"])
    return Answer(
        question=one["question"],
        mode=one["mode"],
        thinking=parsed.thinking,
        answer=parsed.answer,
        closed=parsed.closed,
        leaked=parsed.leaked,
        finished=one["finished"],
    )


def _logits_check(
    lineage: Lineage,
    answers: Sequence[Mapping[str, Any]],
    logits: Mapping[str, Tensor],
    *,
    dtype: str,
    name: str,
) -> Check:
    """Whether the run directory, loaded here, gives the same logits for the same prompts."""
    run = lineage.run.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(run))
        exact = dtype == "float32" and _stored_in_float32(run)
        model = load_checkpoint(run, dtype=dtype if dtype == "auto" else getattr(torch, dtype))
    except (DualignError, OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        return check(f"logits{name}", [f"{run.name} itself can't be loaded: {first}"], "")
    faults, worst = [], 0.0
    for one, saved_BTV in zip(answers, logits_in_order(answers, logits), strict=True):
        own = tokenizer(one["prompt"], add_special_tokens=False)["input_ids"]
        if own != one["ids"]:
            faults.append(
                f"the staged tokenizer reads the {one['mode']} prompt in other tokens than the run's"
            )
            continue
        live_BTV = logits_of(model, torch.tensor([own], device=model.device))
        difference = compare_logits(live_BTV, saved_BTV)
        worst = max(worst, difference["reload_max_logit_difference"])
        faults += _beyond(difference, exact=exact)
    del model
    gc.collect()
    told = f"those of {run.name}: largest difference {worst:.1e} on {len(answers)} prompts"
    return check(f"logits{name}", dict.fromkeys(faults), told)


def logits_in_order(
    answers: Sequence[Mapping[str, Any]], logits: Mapping[str, Tensor]
) -> list[Tensor]:
    """The logits of each answer's prompt; questions are numbered in their order, modes named."""
    numbers = {text: n for n, text in enumerate(dict.fromkeys(one["question"] for one in answers))}
    return [logits[f"{numbers[one['question']]}/{one['mode']}"] for one in answers]


def _beyond(difference: Mapping[str, float], *, exact: bool) -> list[str]:
    largest, share = difference["reload_max_logit_difference"], difference["reload_rms_share"]
    if exact:
        bound = max(FLOOR, FLOAT32_BOUND * difference["largest_logit"])
        said = f"a logit differs by {largest:.3g}, bound {bound:.3g}"
        passed = largest <= bound
    else:
        said = f"logits differ by {100 * share:.3g} % (root mean square), bound {100 * ROUNDED_BOUND:.3g} %"
        passed = share <= ROUNDED_BOUND
    return [] if passed else [f"the staged files give other logits than the run: {said}"]


def _stored_in_float32(folder: Path) -> bool:
    from dualign.checkpoints.weights import open_weights

    return {entry.dtype for entry in open_weights(folder).entries.values()} == {"F32"}


def modes_check(answers: Sequence[Answer], *, name: str = "") -> Check:
    """Whether think answers close their block and answer, and no_think answers have none."""
    by_mode = {mode: [one for one in answers if one.mode == mode] for mode in MODES}
    think, quick = by_mode["think"], by_mode["no_think"]
    closed = [one for one in think if one.closed and one.answer]
    leaks = [one for one in quick if one.leaked]
    silent = [one for one in quick if not one.answer]
    faults = []
    if 2 * len(closed) < len(think):
        faults.append(
            f"in think mode {len(think) - len(closed)} of {len(think)} answers don't close their think block and answer"
        )
    if leaks:
        faults.append(f"in no_think mode {len(leaks)} of {len(quick)} answers hold a think block")
    if silent:
        faults.append(f"in no_think mode {len(silent)} of {len(quick)} answers are empty")
    if faults:
        faults.append(
            "the switch doesn't work as the card would say; train longer, or --allow modes"
        )
    told = f"{len(closed)} of {len(think)} think blocks closed, {len(quick)} answers without one in no_think"
    return check(f"modes{name}", faults, told)
