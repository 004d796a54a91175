"""The card of a dataset: who wrote its rows about what, what was dropped, and how to load it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import DatasetCardData

from dualign.publish.card.body import template
from dualign.publish.card.training import hyper_parameters
from dualign.publish.checklist import CheckResult
from dualign.publish.redaction import redact, redact_text
from dualign.publish.rows import RowsRelease

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def dataset_front_matter(release: RowsRelease, files: Mapping[str, str]) -> DatasetCardData:
    """Return the front matter, with a configuration for all rows and one for each mode.

    Args:
        files: mode -> its Parquet file.
    """
    wishes, run = release.request.wishes, release.lineage.run
    languages = dict.fromkeys(code for base in release.bases for code in base.languages)
    count = len(release.rows)
    configs = {"default": list(files.values()), **{mode: [file] for mode, file in files.items()}}
    other = release.license.id == "other"
    return DatasetCardData(
        license=release.license.id,
        license_name=wishes.license_name if other else None,
        license_link=wishes.license_link if other else None,
        language=list(release.request.languages or languages) or None,
        pretty_name=wishes.model_name or release.request.repo_id.split("/")[-1],
        task_categories=["text-generation"],
        size_categories=[next((size for limit, size in _SIZES if count < limit), "n>1M")],
        tags=list(dict.fromkeys(["dualign", "synthetic", run.kind, "reasoning", *wishes.tags])),
        configs=[
            {"config_name": name, "data_files": [{"split": "train", "path": paths}]}
            for name, paths in configs.items()
        ],
    )


def render_dataset(
    release: RowsRelease, files: Mapping[str, str], checks: Sequence[CheckResult]
) -> str:
    """Return the Markdown of the card."""
    record: Mapping[str, Any] = redact(release.lineage.run.record, release.names)
    config: Mapping[str, Any] = record.get("config") or {}
    metrics: Mapping[str, Any] = record.get("metrics") or {}
    text = template("dataset.md.jinja").render(
        release=release,
        request=release.request,
        wishes=release.request.wishes,
        run=record,
        modes=release.modes,
        files=files,
        columns=list(dict.fromkeys(name for row in release.rows for name in row)),
        writers=list(_writers(release, metrics)),
        judge=_judge(config),
        settings=hyper_parameters(record),
        counts=list(_counts(record.get("rows") or {})),
        rejected=metrics.get("rejected") or metrics.get("reasons") or {},
        screening=_screening(config),
        allowed=[check for check in checks if check.state == "allowed"],
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _writers(release: RowsRelease, metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (model that wrote rows, the version of it that is known)."""
    model = metrics.get("model")
    if isinstance(model, Mapping):
        versions = (
            f"{key} {str(model[key])[:16]}"
            for key in ("revision", "fingerprint", "sha256")
            if model.get(key)
        )
        yield (
            redact_text(str(model.get("model")), release.names),
            ", ".join(versions) or "an endpoint; it told no version",
        )
        return
    config: Mapping[str, Any] = release.lineage.run.record.get("config") or {}
    for key in ("model", "rejected_model"):
        value = config.get(key)
        if isinstance(value, str):
            yield (
                redact_text(value, release.names),
                str(config.get("revision") or "of this pipeline"),
            )
    for name in release.writers:
        yield name, "an endpoint; it told no version"


def _judge(config: Mapping[str, Any]) -> str:
    """Say what decided about an answer."""
    verifier, judge = config.get("verifier"), config.get("judge")
    kind = verifier.get("kind") if isinstance(verifier, Mapping) else verifier
    parts = [f"the verifier `{kind}`"] if kind else []
    parts += [f"a judge of kind `{judge.get('kind', judge)}`"] if isinstance(judge, Mapping) else []
    return " and ".join(parts)


def _counts(rows: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield (source, mode, rows in, kept, dropped by reason), and the sums at last."""
    for entry in (*(rows.get("by") or ()), {"source": "all", "mode": "", **rows}):
        dropped = ", ".join(f"{reason} {n}" for reason, n in (entry.get("dropped") or {}).items())
        yield (
            redact_text(str(entry.get("source")), {}),
            str(entry.get("mode")),
            str(entry.get("in")),
            str(entry.get("kept")),
            dropped or "none",
        )


def _screening(config: Mapping[str, Any]) -> str:
    """Say how rows were screened for problems of evaluations."""
    screening = (config.get("data") or {}).get("decontaminate") or config.get("decontaminate")
    if not screening:
        return "The questions weren't screened for problems of evaluations when these rows were made; `data.decontaminate` of the stage that trains on them does it."
    ngram = screening.get("ngram", 13) if isinstance(screening, Mapping) else 13
    return (
        f"Rows that share {ngram} consecutive words with a problem of the evaluation were removed."
    )
