"""The main path of an exported folder: its files -> checks -> card and export.json.

dualign publish gguf you/quickstart-GGUF --quantized-of you/quickstart
"""

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dualign.errors import DualignError, PublishError
from dualign.publish.card.exported import export_front_matter, render_export
from dualign.publish.card.front_matter import make_card
from dualign.publish.checklist import CHECKS, CheckResult, run_checks
from dualign.publish.checks.load_test import LoadTestResult, load_and_ask
from dualign.publish.exported import RECORD, Export, read_export
from dualign.publish.hub.metadata import HubClient
from dualign.publish.lineage import plain_questions, read_lineage
from dualign.publish.manifest import SETTINGS, is_published
from dualign.publish.redaction import redact
from dualign.publish.release import (
    LoadTestAnswer,
    PublishRequest,
    StagedRelease,
    file_hashes,
    file_sizes,
    require_repo_id,
)
from dualign.publish.staging import copy_file, redact_file
from dualign.rundir import RUN_JSON, write_json
from dualign.version import __version__

logger = logging.getLogger(__name__)


def prepare_export(
    request: PublishRequest, folder: Path, hub: HubClient, card_before: str | None
) -> StagedRelease:
    """Stage an exported folder, check everything, write card and export.json. Nothing leaves.

    Raises:
        DualignError: it isn't one, or the request can't be met.
    """
    require_repo_id(request.repo_id)
    _refuse_other_options(request)
    export = read_export(request, hub)
    allow = request.allow
    checks = run_checks("export", export, hub, allow=allow)
    results, answers = stage_and_test(export, folder, checks)
    checks += results
    card = _write_documents(export, folder, checks, answers, card_before)
    checks += run_checks("documents", export, folder, allow=allow)
    return StagedRelease(
        request=export.request,
        folder=folder,
        files=file_sizes(folder),
        checks=tuple(checks),
        card=card,
        message=f"Publish {export.method} of {export.original.id}",
        left_out=export.left_out,
        is_outdated=is_published if export.kind == "checkpoint" else lambda name: False,
    )


def stage_and_test(
    export: Export, folder: Path, checks: Sequence[CheckResult], *, suffix: str = ""
) -> tuple[list[CheckResult], Sequence[LoadTestAnswer]]:
    """Stage an export into `folder`, and check what was staged; a checkpoint is loaded and asked.

    Args:
        checks: those before; what is broken isn't loaded.
        suffix: appended to the names of the checks.
    """
    allow = export.request.allow
    error = None
    try:
        _stage(export, folder)
    except (DualignError, OSError) as fault:
        error = str(fault)
    results = run_checks("staging", error, suffix=suffix)
    results += run_checks("exported", export, folder, allow=allow, suffix=suffix)
    if export.kind == "gguf":
        return results, ()
    names = {
        result.name.removesuffix(suffix)
        for result in (*checks, *results)
        if result.state == "failed"
    }
    test = _load_test(export, folder, names)
    # Its logits are others than the original's: that is what quantizing does.
    loaded = run_checks("load", replace(test, prompts=()), allow=allow, suffix=suffix)
    results += [
        _as_allowed(result, f"loads{suffix}", allow)
        for result in loaded
        if result.name != f"logits{suffix}"
    ]
    return results, test.answers


def _as_allowed(result: CheckResult, loads: str, allow: Set[str]) -> CheckResult:
    """Return the result; of an export, --allow accepts that its packages aren't here."""
    accepted = result.name == loads and result.state == "failed" and "loads" in allow
    return replace(result, state="allowed") if accepted else result


def _refuse_other_options(request: PublishRequest) -> None:
    if not request.quantized_of:
        raise PublishError(
            f"{request.run_dir}: is an export: say which repository has the weights that it was made from, "
            "--quantized-of OWNER/NAME"
        )
    for option, value in (
        ("--what", request.contents),
        ("--base", request.bases),
        ("--with", request.exports),
    ):
        if value:
            raise PublishError(f"{option}: is for a run directory; {request.run_dir} is an export")


def _stage(export: Export, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, file in export.files.items():
        copy_file(file, folder / name)
        if name in (*SETTINGS, "Modelfile"):
            redact_file(folder / name, export.names)


def _load_test(export: Export, folder: Path, failed: Set[str]) -> LoadTestResult:
    needed = [spec.name for spec in CHECKS if spec.needed_to_load]
    broken = [name for name in dict.fromkeys(needed) if name in failed]
    if broken:
        return LoadTestResult(
            run_dir=export.folder, skipped=f"not tried: {', '.join(broken)} failed"
        )
    missing = [name for name in export.packages if not find_spec(name.replace("-", "_"))]
    if missing:
        return LoadTestResult(
            run_dir=export.folder,
            error=f"{missing[0]} isn't installed here, and nothing loads the files without it: "
            f"pip install {missing[0]}, or --allow loads",
        )
    logger.info("loading what was staged in a fresh process, and asking it in both modes ...")
    questions, limit = questions_of(export)
    switch = export.request.switch
    return load_and_ask(
        folder, run_dir=export.folder, questions=questions, limit=limit, switch=switch
    )


def questions_of(export: Export) -> tuple[list[str], int]:
    """Return what the original's evaluations asked, and the tokens of an answer."""
    model = Path(str(export.record.get("model") or ""))
    return read_lineage(model).questions() if (model / RUN_JSON).is_file() else plain_questions()


def _write_documents(
    export: Export,
    folder: Path,
    checks: Sequence[CheckResult],
    answers: Sequence[LoadTestAnswer],
    card_before: str | None,
) -> str:
    hashes, (questions, _) = file_hashes(folder), questions_of(export)
    body = render_export(export, folder, hashes, checks, answers, questions)
    card = str(make_card(export_front_matter(export), body, before=card_before))
    (folder / "README.md").write_text(card, encoding="utf-8", errors="replace")
    write_json(folder / RECORD, _record(export, checks, answers, file_hashes(folder)))
    return card


def _record(
    export: Export,
    checks: Sequence[CheckResult],
    answers: Sequence[LoadTestAnswer],
    hashes: Mapping[str, str],
) -> dict[str, Any]:
    """Return the public export.json: the export's own without paths, the checks, and all hashes."""
    original, names = export.original, export.names
    results = [{"name": c.name, "state": c.state, "found": c.message} for c in checks]
    return {
        **redact(dict(export.record), names),
        "published": {
            "by": f"dualign {__version__}",
            "repository": export.request.repo_id,
            "quantized_of": {"id": original.id, "revision": original.revision},
            "license": redact(asdict(export.license), names),
            "checks": redact(results, names),
            "answers": [asdict(answer) for answer in answers],
        },
        "hashes": dict(hashes),
    }
