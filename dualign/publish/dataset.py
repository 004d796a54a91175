"""The main path of rows: a stage of traces or pairs -> Parquet -> checks -> dataset card and run.json.

dualign publish runs/mine/traces you/traces
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dualign.errors import PublishError
from dualign.publish.card.dataset import dataset_front_matter, render_dataset
from dualign.publish.card.front_matter import make_card
from dualign.publish.checklist import CheckResult, run_checks
from dualign.publish.hub.metadata import HubClient
from dualign.publish.redaction import redact, redact_record
from dualign.publish.release import (
    PublishRequest,
    StagedRelease,
    file_hashes,
    file_sizes,
    require_repo_id,
)
from dualign.publish.rows import RowsRelease, examine_rows, write_parquet
from dualign.report.runs import read_stage
from dualign.rundir import RUN_JSON, write_json
from dualign.stages import stage_kind
from dualign.version import __version__


def holds_rows(run_dir: Path) -> bool:
    """Return whether it is the run directory of a stage whose rows a model wrote."""
    if not (run_dir / RUN_JSON).is_file():
        return False
    return stage_kind(read_stage(run_dir).kind).generates_rows


def prepare_dataset(
    request: PublishRequest, folder: Path, hub: HubClient, card_before: str | None
) -> StagedRelease:
    """Stage the rows as Parquet, check everything, write card and run.json. Nothing leaves.

    Raises:
        DualignError: the stage wrote no rows, or the request can't be met.
    """
    require_repo_id(request.repo_id)
    for option, value in (
        ("--what", request.contents),
        ("--quantized-of", request.quantized_of),
        ("--with", request.exports),
    ):
        if value:
            raise PublishError(f"{option}: is for models; {request.run_dir} holds rows")
    release = examine_rows(request, hub)
    allow = request.allow
    checks = run_checks("rows", release, hub, allow=allow)
    files = write_parquet(release.rows, folder)
    data = dataset_front_matter(release, files)
    card = str(make_card(data, render_dataset(release, files, checks), before=card_before))
    (folder / "README.md").write_text(card, encoding="utf-8", errors="replace")
    checks += run_checks("dataset", release, folder, allow=allow)
    write_json(folder / RUN_JSON, _record(release, checks, file_hashes(folder)))
    checks += run_checks("documents", release, folder, allow=allow)
    run = release.lineage.run
    return StagedRelease(
        request=release.request,
        folder=folder,
        files=file_sizes(folder),
        checks=tuple(checks),
        card=card,
        message=f"Publish {run.name} ({str(run.record.get('fingerprint'))[:12]})",
        left_out=_left_out(request.run_dir, release.file),
        is_outdated=_is_ours,
    )


def _is_ours(name: str) -> bool:
    return name.startswith("data/") and name.endswith(".parquet")


def _left_out(run_dir: Path, file: str) -> tuple[tuple[str, str], ...]:
    others = sorted(path.name for path in run_dir.iterdir() if path.name not in (file, RUN_JSON))
    return tuple((name, "not the rows") for name in others)


def _record(
    release: RowsRelease, checks: Sequence[CheckResult], hashes: Mapping[str, str]
) -> dict[str, Any]:
    """Return the public run.json: records of the stages, checks, hashes of the files."""
    lineage, names = release.lineage, release.names
    results = [{"name": c.name, "state": c.state, "found": c.message} for c in checks]
    return {
        "schema": 1,
        **redact_record(lineage.run.record, names),
        "published": {
            "by": f"dualign {__version__}",
            "repository": release.request.repo_id,
            "what": "rows",
            "bases": [{"id": base.id, "revision": base.revision} for base in release.bases],
            "license": redact(asdict(release.license), names),
            "checks": redact(results, names),
            "stages": {s.name: redact_record(s.record, names) for s in lineage.stages[:-1]},
        },
        "files": dict(hashes),
    }
