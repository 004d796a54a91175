"""Copies in fewer bits beside the weights: GGUF files at the top, a checkpoint in a folder of its type.

dualign publish runs/quickstart/merged you/quickstart --with gguf fp8
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dualign.checkpoints.weights import open_weights
from dualign.errors import DualignError, PublishError
from dualign.hashing import hashes_of
from dualign.publish.card.copies import copy_texts, render_copy
from dualign.publish.checklist import CheckResult, run_checks
from dualign.publish.earlier import Copy, EarlierCopies, earlier_copies, record_on_hub
from dualign.publish.export import questions_of, stage_and_test
from dualign.publish.exported import RECORD, Export, read_beside
from dualign.publish.hub.repository import RemoteState
from dualign.publish.redaction import redact
from dualign.publish.release import Release, file_hashes
from dualign.rundir import write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Copies:
    """All that lies beside the weights: copies that go now, and those that are there and stay."""

    copies: tuple[Copy, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    """folder in the repository -> the part of the card about it"""
    checks: tuple[CheckResult, ...] = ()
    earlier: EarlierCopies = field(default_factory=EarlierCopies)
    left_out: tuple[tuple[str, str], ...] = ()


def read_copies(release: Release) -> dict[str, Export]:
    """Return folder in the repository -> export, of --with.

    Raises:
        PublishError: one isn't an export, two have the same place, or no weights go.
    """
    exports: dict[str, Export] = {}
    for folder in release.request.exports:
        if release.manifest.contents == "adapter":
            raise PublishError(
                f"--with {folder}: an adapter is published, and copies lie beside weights: add --what weights, "
                "or publish the weights first and the copy with --quantized-of"
            )
        export = read_beside(folder, release)
        if other := exports.get(export.place):
            place = f"{export.place}/" if export.place else "GGUF files at the top"
            raise PublishError(
                f"--with: {other.folder} and {folder} would both be the {place} of the repository; leave one "
                "out, or export all GGUF types together (--types)"
            )
        exports[export.place] = export
    return exports


def stage_copies(
    exports: Mapping[str, Export], release: Release, folder: Path, repository: RemoteState | str
) -> Copies:
    """Stage and check copies beside the staged weights, and look at those that the repository holds."""
    copies: list[Copy] = []
    texts: dict[str, str] = {}
    checks: list[CheckResult] = []
    weights = _weights_of(release) if exports else {}
    for place, export in exports.items():
        suffix, target = f" ({export.method})", folder / place
        allow = release.request.allow
        results = run_checks("beside", export, weights, allow=allow, suffix=suffix)
        more, answers = stage_and_test(export, target, results, suffix=suffix)
        results += more
        write_json(target / RECORD, redact(dict(export.record), export.names))
        questions, _ = questions_of(export)
        texts[place] = render_copy(export, target, results, answers, questions)
        names = [f"{place}/{name}" if place else name for name in (*export.files, RECORD)]
        copies.append(Copy(folder=place, method=export.method, files=tuple(names)))
        checks += results
    described = copy_texts("" if isinstance(repository, str) else repository.card or "")
    record = record_on_hub(repository)
    earlier = earlier_copies(
        record,
        {} if isinstance(repository, str) else repository.files,
        file_hashes(folder) if record else {},
        replaced=exports,
        described=described,
    )
    places = [copy.folder for copy in earlier.kept if copy.folder in described]
    return Copies(
        copies=(*copies, *earlier.kept),
        texts=texts | {place: described[place] for place in places},
        checks=(*checks, *run_checks("earlier", earlier, release.request)),
        earlier=earlier,
        left_out=tuple(
            (f"{export.folder.name}/{name}", why)
            for export in exports.values()
            for name, why in export.left_out
        ),
    )


def _weights_of(release: Release) -> dict[str, str] | str:
    """Return the hashes of the files that the published weights are read from, or why there are none."""
    try:
        return hashes_of(open_weights(release.lineage.run.path).files)
    except (DualignError, OSError) as error:
        return str(error)
