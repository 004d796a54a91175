"""Checks on rows that become a dataset: their counts, what is in them, and that they load."""

import json
import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import get_token

from dualign.publish.checklist import CheckOutcome, judge
from dualign.publish.checks.secrets import secret_kinds
from dualign.publish.hub.metadata import HubClient
from dualign.publish.rows import RowsRelease

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@([\w-]+(?:\.[\w-]+)+)")
_NOBODYS = ("example.com", "example.org", "example.net", "test.com")


def check_rows_lineage(release: RowsRelease, hub: HubClient) -> CheckOutcome:
    """The stages that the rows came from are still there, unchanged."""
    names = ", ".join(stage.name for stage in release.lineage.stages)
    return judge(release.lineage.faults, f"made by {names}")


def check_rows_license(release: RowsRelease, hub: HubClient) -> CheckOutcome:
    """The license of the rows is known: their questions' and their writer's."""
    license = release.license
    return judge([license.why] if license.id is None else (), f"{license.id}: {license.why}")


def check_counts(release: RowsRelease, hub: HubClient) -> CheckOutcome:
    """Every row that was read is kept or dropped for a reason, and every row written is here."""
    record = release.lineage.run.record
    rows, metrics = record.get("rows") or {}, record.get("metrics") or {}
    dropped = sum((rows.get("dropped") or {}).values())
    faults = []
    if rows.get("in") != (rows.get("kept") or 0) + dropped:
        faults.append(
            f"run.json: {rows.get('in')} rows in, {rows.get('kept')} kept and {dropped} dropped"
        )
    wrote = metrics.get("pairs")
    if wrote is None:
        wrote = (metrics.get("think_rows") or 0) + (metrics.get("no_think_rows") or 0)
    if wrote != len(release.rows):
        faults.append(
            f"{release.file} has {len(release.rows)} rows and the stage wrote {wrote}: run it again"
        )
    summary = (
        f"{rows.get('in')} rows in: {rows.get('kept')} kept, {dropped} dropped; {wrote} written"
    )
    return judge(faults, summary)


def check_row_secrets(release: RowsRelease, hub: HubClient) -> CheckOutcome:
    """No row holds a token or a key, or a folder of this machine."""
    token = get_token()
    places = [str(Path.home()) + "/", str(release.lineage.output)]
    faults = []
    for number, row in enumerate(release.rows, start=1):
        text = json.dumps(row, ensure_ascii=False)
        for kind in secret_kinds(text, token=token):
            faults.append(f"{release.file}:{number} holds {kind}: take the row out of the source")
        if any(place in text for place in places if len(place) > 6):
            faults.append(f"{release.file}:{number} holds a path of this machine")
    return judge(faults, f"no token, key or path in {len(release.rows)} rows")


def check_personal(release: RowsRelease, hub: HubClient) -> CheckOutcome:
    """No row holds an e-mail address of someone."""
    counts: Counter[int] = Counter()
    for number, row in enumerate(release.rows, start=1):
        hosts = _EMAIL.findall(json.dumps(row, ensure_ascii=False))
        counts[number] += sum(host.lower() not in _NOBODYS for host in hosts)
    faults = [
        f"{release.file}:{number} holds an e-mail address: take it out, or --allow personal if it is public"
        for number, count in counts.items()
        if count
    ]
    return judge(faults, f"no e-mail address in {len(release.rows)} rows")


def check_dataset_loads(release: RowsRelease, folder: Path) -> CheckOutcome:
    """`datasets.load_dataset` reads every configuration, and gives the rows that the stage wrote."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    expected = {"default": len(release.rows), **release.modes}
    faults, columns = [], []
    with TemporaryDirectory(prefix="dualign-load-test-") as cache:
        for name, count in expected.items():
            try:
                rows = load_dataset(str(folder), name, split="train", cache_dir=cache)
            except Exception as error:  # whatever its builders raise
                faults.append(f"{name}: {str(error).strip().splitlines()[0]}")
                continue
            columns = list(rows.column_names)
            if len(rows) != count:
                faults.append(f"{name}: {len(rows)} rows, and {count} were written")
    shown = ", ".join(f"{name} {count}" for name, count in expected.items())
    return judge(faults, f"datasets.load_dataset: {shown} rows of {', '.join(columns)}")
