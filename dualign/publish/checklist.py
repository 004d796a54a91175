"""The checks of a publication, in one table, and the function that runs them.

A new check is a function in `checks/` that returns a `CheckOutcome`, and a row of `CHECKS`.
Functions are named by text and imported when they run, so `dualign publish --help` reads the rows
without torch.
"""

from collections.abc import Iterable, Set
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

Phase = Literal[
    "release",
    "staging",
    "files",
    "load",
    "documents",
    "repository",
    "export",
    "exported",
    "beside",
    "earlier",
    "rows",
    "dataset",
    "card_only",
]
State = Literal["ok", "failed", "allowed", "skipped"]
_MAX_SHOWN = 5  # faults of one check


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckOutcome:
    """The answer of a check function: the faults, or a summary of what was checked."""

    state: State
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """A named outcome. `failed` stops the publication; `skipped` could not be checked."""

    name: str
    state: State
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckSpec:
    """One row: the name that run.json and --allow use, the phase, and MODULE:FUNCTION."""

    name: str
    phase: Phase
    function: str
    may_fail: bool = False
    """--allow NAME publishes in spite of it, and the card says so"""
    needed_to_load: bool = False
    """the load test is skipped if it failed"""


CHECKS: tuple[CheckSpec, ...] = (
    # Called with (release, hub), before a file is staged.
    CheckSpec(name="lineage", phase="release", function="provenance:check_lineage", may_fail=True),
    CheckSpec(name="files", phase="release", function="files:check_files", needed_to_load=True),
    CheckSpec(name="base", phase="release", function="provenance:check_base", may_fail=True),
    CheckSpec(name="base_weights", phase="release", function="provenance:check_base_weights", may_fail=True),
    CheckSpec(name="license", phase="release", function="provenance:check_license"),
    # Called with (error), the message of the copy that failed or None.
    CheckSpec(name="staging", phase="staging", function="files:check_staging", needed_to_load=True),
    # Called with (release, folder), once the checkpoint is staged.
    CheckSpec(name="weights", phase="files", function="files:check_weights", needed_to_load=True),
    CheckSpec(name="code", phase="files", function="files:check_code", needed_to_load=True),
    CheckSpec(name="doctor", phase="files", function="files:check_doctor", may_fail=True),
    CheckSpec(name="composition", phase="files", function="adapter:check_composition"),
    # Called with (load_test): what a fresh process made of the staged files.
    CheckSpec(name="loads", phase="load", function="load_test:check_loads"),
    CheckSpec(name="logits", phase="load", function="load_test:check_logits"),
    CheckSpec(name="modes", phase="load", function="load_test:check_modes", may_fail=True),
    # Called with (release, folder), once README.md and run.json are in it.
    CheckSpec(name="card", phase="documents", function="documents:check_card"),
    CheckSpec(name="secrets", phase="documents", function="documents:check_secrets"),
    CheckSpec(name="paths", phase="documents", function="documents:check_paths"),
    CheckSpec(name="hashes", phase="documents", function="documents:check_hashes"),
    # Called with (export, hub), before a file of an exported folder is staged.
    CheckSpec(name="files", phase="export", function="exported:check_export_files", needed_to_load=True),
    CheckSpec(name="base_weights", phase="export", function="exported:check_original", may_fail=True),
    CheckSpec(name="license", phase="export", function="exported:check_original_license"),
    # Called with (export, folder), once its files are staged.
    CheckSpec(name="weights", phase="exported", function="exported:check_tensors", needed_to_load=True),
    CheckSpec(name="code", phase="exported", function="files:check_code", needed_to_load=True),
    CheckSpec(name="loads", phase="exported", function="exported:check_gguf", may_fail=True),
    CheckSpec(name="both_modes", phase="exported", function="exported:check_both_modes", may_fail=True),
    # Called with (export, weights) of an export beside weights: hashes of their files, or why there are none.
    CheckSpec(name="files", phase="beside", function="exported:check_export_files", needed_to_load=True),
    CheckSpec(name="base_weights", phase="beside", function="exported:check_weights_of_run", may_fail=True),
    # Called with (earlier, request): what an earlier publication put beside weights.
    CheckSpec(name="copies", phase="earlier", function="exported:check_earlier"),
    # Called with (rows, hub), before rows are staged as a dataset.
    CheckSpec(name="lineage", phase="rows", function="rows:check_rows_lineage", may_fail=True),
    CheckSpec(name="rows", phase="rows", function="rows:check_counts"),
    CheckSpec(name="license", phase="rows", function="rows:check_rows_license"),
    CheckSpec(name="row_secrets", phase="rows", function="rows:check_row_secrets"),
    CheckSpec(name="personal", phase="rows", function="rows:check_personal", may_fail=True),
    # Called with (rows, folder), once Parquet files and card are in it.
    CheckSpec(name="loads", phase="dataset", function="rows:check_dataset_loads"),
    # Called with (folder, repository, upload) where the card alone goes.
    CheckSpec(name="same_weights", phase="card_only", function="repository:check_same_weights"),
    # Called with (request, repository): the hub's state, or the error that hides it.
    CheckSpec(name="hub", phase="repository", function="repository:check_repository"),
)  # fmt: skip
MAY_FAIL = tuple(dict.fromkeys(spec.name for spec in CHECKS if spec.may_fail))
"""The names that --allow takes. The other checks keep a repository usable and harmless."""


def run_checks(
    phase: Phase, *evidence: Any, allow: Set[str] = frozenset(), suffix: str = ""
) -> list[CheckResult]:
    """Run the checks of a phase on its evidence; a function that returns None does not apply.

    Args:
        allow: names of checks whose failure is accepted.
        suffix: appended to the names, where several things are checked.
    """
    results = []
    for spec in CHECKS:
        outcome = _function(spec)(*evidence) if spec.phase == phase else None
        if outcome is not None:
            accepted = outcome.state == "failed" and spec.may_fail and spec.name in allow
            state: State = "allowed" if accepted else outcome.state
            results.append(
                CheckResult(name=spec.name + suffix, state=state, message=outcome.message)
            )
    return results


def _function(spec: CheckSpec) -> Any:
    module, _, name = spec.function.partition(":")
    return getattr(import_module(f"dualign.publish.checks.{module}"), name)


def judge(faults: Iterable[str], ok: str) -> CheckOutcome:
    """Failed with its faults, one to a line; or ok with a summary of what was checked."""
    listed = list(faults)
    if not listed:
        return CheckOutcome(state="ok", message=ok)
    more = [f"and {len(listed) - _MAX_SHOWN} more"] if len(listed) > _MAX_SHOWN else []
    return CheckOutcome(state="failed", message="\n".join([*listed[:_MAX_SHOWN], *more]))
