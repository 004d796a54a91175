"""The load test: staged files in a fresh process without dualign, compared with the run directory.

`run_load_test` loads and asks the model; the three checks look at its result.
"""

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

from dualign.checkpoints.weights import open_weights
from dualign.data.conversation import MODES
from dualign.errors import DualignError
from dualign.generation.thinking import TraceMarks, split, trace_marks
from dualign.models.loading import load_checkpoint
from dualign.models.logits import (
    FLOAT32_BOUND,
    FLOOR,
    ROUNDED_BOUND,
    compare_logits,
    logits_of,
)
from dualign.models.prompts import one_prompt, saved_switch
from dualign.publish.base import Base
from dualign.publish.checklist import CheckOutcome, judge
from dualign.publish.checks import isolated_loader
from dualign.publish.lineage import Lineage
from dualign.publish.release import LoadTestAnswer
from dualign.switch import Switch

_FLOAT32_BYTES = 4_000_000_000  # of weights, up to which all is computed in float32
_ENVIRONMENT = (
    "PATH", "HOME", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "SYSTEMROOT",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptLogits:
    """A prompt as the fresh process tokenized it, with its logits."""

    text: str
    mode: str
    ids: tuple[int, ...]
    logits_BTV: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadTestResult:
    """The output of the fresh process. Without `error` and `skipped` the model was loaded."""

    run_dir: Path
    name: str = ""
    """appended to the names of the checks, where several things are loaded"""
    skipped: str = ""
    """why nothing was tried"""
    error: str = ""
    """why the staged files don't load"""
    faults: tuple[str, ...] = ()
    """weights that were missing or left over"""
    dtype: str = "auto"
    prompts: tuple[PromptLogits, ...] = ()
    answers: tuple[LoadTestAnswer, ...] = ()


def run_load_test(
    lineage: Lineage,
    folder: Path,
    *,
    adapter: Path | None,
    base: Base | None,
    name: str = "",
    switch: Switch | None = None,
) -> LoadTestResult:
    """Load `folder` (or `adapter` on `base`) in a fresh process, and ask it in both modes.

    Args:
        folder: the staged files; tokenizer and template are read from here.
        name: appended to the names of the checks, where several things are loaded.
        switch: what switches the modes; None: what the template states or reads.
    """
    questions, limit = lineage.questions()
    return load_and_ask(
        folder,
        run_dir=lineage.run.path,
        questions=questions,
        limit=limit,
        adapter=adapter,
        base=base,
        name=name,
        switch=switch,
    )


def load_and_ask(
    folder: Path,
    *,
    run_dir: Path,
    questions: Sequence[str],
    limit: int,
    adapter: Path | None = None,
    base: Base | None = None,
    name: str = "",
    switch: Switch | None = None,
) -> LoadTestResult:
    """Load staged files in a fresh process, and ask them these questions in both modes.

    Args:
        limit: tokens of an answer.
    """
    dtype = "float32" if _weight_bytes(folder, base) <= _FLOAT32_BYTES else "auto"
    with TemporaryDirectory(prefix="dualign-load-test-") as work:
        request = {
            "folder": str(folder.resolve()),
            "adapter": str(adapter.resolve()) if adapter else None,
            "base": base.where if base else None,
            "revision": base.revision if base and not base.root.is_local else None,
            "dtype": dtype,
            "questions": list(questions),
            "modes": _modes_of(switch or saved_switch(folder)),
            "limit": limit,
            "out": f"{work}/out",
        }
        if error := _run_loader(request, Path(work)):
            return LoadTestResult(run_dir=run_dir, name=name, error=error)
        output = json.loads(Path(work, "out.json").read_text(encoding="utf-8"))
        logits = load_file(Path(work, "out.safetensors"))
    marks = trace_marks(AutoTokenizer.from_pretrained(str(folder)))
    numbers = {question: number for number, question in enumerate(questions)}
    return LoadTestResult(
        run_dir=run_dir,
        name=name,
        faults=tuple(output["faults"]),
        dtype=dtype,
        prompts=tuple(
            PromptLogits(
                text=entry["prompt"],
                mode=entry["mode"],
                ids=tuple(entry["ids"]),
                logits_BTV=logits[f"{numbers[entry['question']]}/{entry['mode']}"],
            )
            for entry in output["answers"]
        ),
        answers=tuple(_answer(entry, marks) for entry in output["answers"]),
    )


def _modes_of(switch: Switch) -> dict[str, Any]:
    """Return for each mode the system text and the variables of a plain question."""
    return {
        mode: {"system": switch.of(mode).get("system"), "variables": switch.variables(mode)}
        for mode in MODES
    }


def _weight_bytes(folder: Path, base: Base | None) -> int:
    place = Path(base.where) if base and base.root.is_local else folder
    return sum(file.stat().st_size for file in place.glob("*.safetensors"))


def _run_loader(request: Mapping[str, Any], work: Path) -> str:
    """Run isolated_loader.py; return its error, or "".

    The process sees neither our modules nor a token; hub ids come from the cache.
    """
    request_file = work / "request.json"
    request_file.write_text(json.dumps(request), encoding="utf-8")
    environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
    environment |= {key: os.environ[key] for key in os.environ if key.endswith("_NUM_THREADS")}
    if request["adapter"] and request["revision"] is not None:  # the base may have to be fetched
        environment |= {key: value for key, value in os.environ.items() if key.startswith("HF_")}
    else:
        environment["HF_HUB_OFFLINE"] = "1"
    process = subprocess.run(
        [sys.executable, "-I", str(isolated_loader.__file__), str(request_file)],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode == 0:
        return ""
    lines = [line for line in process.stderr.strip().splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit status {process.returncode}"
    return f"the staged files don't load in a fresh process: {last}"


def _answer(entry: Mapping[str, Any], marks: TraceMarks) -> LoadTestAnswer:
    mode, finished = entry["mode"], entry["finished"]
    parsed = split(entry["prompt"], entry["generated"], mode=mode, finished=finished, marks=marks)
    return LoadTestAnswer(
        question=entry["question"],
        mode=mode,
        thinking=parsed.thinking,
        answer=parsed.answer,
        closed=parsed.closed,
        leaked=parsed.leaked,
        finished=finished,
    )


def check_loads(test: LoadTestResult) -> CheckOutcome:
    """Plain transformers (and peft) load the staged files: nothing missing, nothing left over."""
    if test.skipped:
        return CheckOutcome(state="skipped", message=test.skipped)
    faults = [test.error] if test.error else test.faults
    return judge(faults, "in plain transformers and peft, from the staged files alone")


def check_logits(test: LoadTestResult) -> CheckOutcome:
    """The run directory, loaded in this process, gives the same logits for the same prompts."""
    if not test.prompts:
        return CheckOutcome(state="skipped", message=test.skipped or "nothing was loaded")
    run = test.run_dir
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(run))
        exact = test.dtype == "float32" and _stored_in_float32(run)
        model = load_checkpoint(
            run, dtype=test.dtype if test.dtype == "auto" else getattr(torch, test.dtype)
        )
    except (DualignError, OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        return judge([f"{run.name} itself can't be loaded: {first}"], "")
    faults, largest = [], 0.0
    for prompt in test.prompts:
        ids = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
        if tuple(ids) != prompt.ids:
            faults.append(
                f"the staged tokenizer reads the {prompt.mode} prompt in other tokens than the run's"
            )
            continue
        run_logits_BTV = logits_of(model, torch.tensor([ids], device=model.device))
        difference = compare_logits(run_logits_BTV, prompt.logits_BTV)
        largest = max(largest, difference["reload_max_logit_difference"])
        faults += _beyond(difference, exact=exact)
    del model
    gc.collect()
    summary = (
        f"those of {run.name}: largest difference {largest:.1e} on {len(test.prompts)} prompts"
    )
    return judge(dict.fromkeys(faults), summary)


def _beyond(difference: Mapping[str, float], *, exact: bool) -> list[str]:
    largest, share = difference["reload_max_logit_difference"], difference["reload_rms_share"]
    if exact:
        bound = max(FLOOR, FLOAT32_BOUND * difference["largest_logit"])
        text = f"a logit differs by {largest:.3g}, bound {bound:.3g}"
        passed = largest <= bound
    else:
        text = f"logits differ by {100 * share:.3g} % (root mean square), bound {100 * ROUNDED_BOUND:.3g} %"
        passed = share <= ROUNDED_BOUND
    return [] if passed else [f"the staged files give other logits than the run: {text}"]


def _stored_in_float32(folder: Path) -> bool:
    return {entry.dtype for entry in open_weights(folder).entries.values()} == {"F32"}


def check_modes(test: LoadTestResult) -> CheckOutcome:
    """At least half of the think answers close their block; no_think answers have none."""
    if not test.answers:
        return CheckOutcome(state="skipped", message=test.skipped or "nothing was loaded")
    think, no_think = ([a for a in test.answers if a.mode == mode] for mode in MODES)
    closed = [answer for answer in think if answer.closed and answer.answer]
    leaks = [answer for answer in no_think if answer.leaked]
    silent = [answer for answer in no_think if not answer.answer]
    texts = [{prompt.text for prompt in test.prompts if prompt.mode == mode} for mode in MODES]
    faults = []
    if texts[0] & texts[1]:
        faults.append(f"{one_prompt(None)}. Set switch in the stage that trained it, or --switch")
    if 2 * len(closed) < len(think):
        faults.append(
            f"in think mode {len(think) - len(closed)} of {len(think)} answers don't close their think block and answer"
        )
    if leaks:
        faults.append(
            f"in no_think mode {len(leaks)} of {len(no_think)} answers hold a think block"
        )
    if silent:
        faults.append(f"in no_think mode {len(silent)} of {len(no_think)} answers are empty")
    if faults:
        faults.append(
            "the switch doesn't work as the card would say; train longer, or --allow modes"
        )
    summary = f"{len(closed)} of {len(think)} think blocks closed, {len(no_think)} answers without one in no_think"
    return judge(faults, summary)
