"""The card of an exported folder: what it is a copy of, how close it is, and how to use it."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from dualign.data.conversation import MODES
from dualign.evaluation.scores import Change, change_text, percent
from dualign.models.prompts import saved_switch
from dualign.publish.card.body import Usage, quotable, template
from dualign.publish.checklist import CheckResult
from dualign.publish.exported import Export, comparisons
from dualign.publish.release import LoadTestAnswer
from dualign.switch import ENABLE_THINKING


def export_front_matter(export: Export) -> ModelCardData:
    """Return the front matter of a quantized copy."""
    request, wishes = export.request, export.request.wishes
    tags = ["dualign", "dual-mode", "reasoning", export.method, *wishes.tags]
    return ModelCardData(
        license=export.license.id,
        license_name=wishes.license_name if export.license.id == "other" else None,
        license_link=wishes.license_link if export.license.id == "other" else None,
        language=list(request.languages or export.original.languages) or None,
        base_model=export.original.id,
        base_model_relation="quantized",
        library_name="gguf" if export.kind == "gguf" else "transformers",
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(tags)),
    )


def render_export(
    export: Export,
    folder: Path,
    hashes: Mapping[str, str],
    checks: Sequence[CheckResult],
    answers: Sequence[LoadTestAnswer],
    questions: Sequence[str],
) -> str:
    """Return the Markdown of the card.

    Args:
        questions: what its snippets may ask.
        hashes: file in the repository -> its sha256.
    """
    facts = export_facts(export, folder, checks, answers, questions)
    weights = [item for item in hashes.items() if item[0].endswith((".safetensors", ".gguf"))]
    text = template("exported.md.jinja").render(
        wishes=export.request.wishes, original=export.original, weights=weights, **facts
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def export_facts(
    export: Export,
    folder: Path,
    checks: Sequence[CheckResult],
    answers: Sequence[LoadTestAnswer],
    questions: Sequence[str],
) -> dict[str, Any]:
    """Return what templates say of an export that is staged in `folder`."""
    compared = comparisons(export.record).items()
    return {
        "export": export,
        "request": export.request,
        "allowed": [check for check in checks if check.state == "allowed"],
        "answers": answers,
        "files": list(_file_rows(export, folder)),
        "size": _megabytes(folder, export.files),
        "modes": [(name, list(_mode_rows(result)), result) for name, result in compared],
        "smallest": _smallest(export),
        "calibration": _calibration(export.record),
        "usage": _usage(export, folder, quotable(questions)),
    }


def _megabytes(folder: Path, names: Iterable[str]) -> str:
    weights = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    return f"{sum((folder / name).stat().st_size for name in weights if (folder / name).is_file()) / 1e6:.0f} MB"


def _usage(export: Export, folder: Path, question: str) -> Usage:
    switch = export.request.switch
    if switch is None and export.kind == "checkpoint":
        switch = saved_switch(folder)
    beside = export.original.id == export.request.repo_id
    return Usage(
        repo_id=export.request.repo_id,
        contents="weights",
        base=str(export.original.id),
        revision=export.original.revision or "main",
        rank=0,
        question=question,
        switch=switch or ENABLE_THINKING,
        packages=tuple(export.packages),
        converts=False,
        subfolder=export.place if beside else "",
    )


def _file_rows(export: Export, folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield (file, type, megabytes, bits a weight, change of the weights, agreement in each mode)."""
    for entry in export.record.get("files") or ():
        if not str(entry.get("file")).endswith(".gguf"):
            continue
        error, check = entry.get("error"), entry.get("check") or {}
        bits = entry.get("bits_per_weight")
        yield (
            str(entry["file"]),
            str(entry.get("type") or "-"),
            _megabytes(folder, [str(entry["file"])]),
            "-" if bits is None else f"{bits:.1f}",
            "-" if error is None else f"{error:.2%}",
            *(_agreement(check.get("answers") or (), mode) for mode in MODES),
        )


def _agreement(answers: Sequence[Mapping[str, Any]], mode: str) -> str:
    """Return leading tokens that agree with transformers' / all tokens, over a mode's questions."""
    of_mode = [answer for answer in answers if answer.get("mode") == mode]
    total = sum(int(answer["tokens"]) for answer in of_mode)
    return f"{sum(int(answer['agreed']) for answer in of_mode)}/{total}" if total else "-"


def _smallest(export: Export) -> str:
    return min(export.models, key=lambda name: export.files[name].stat().st_size, default="")


def _calibration(record: Mapping[str, Any]) -> str:
    """Return which rows the quantization read, by mode; "" if it read none."""
    calibration = record.get("calibration") or {}
    counts = calibration.get("modes") or calibration.get("rows") or {}
    if isinstance(counts, Mapping):
        rows = {
            mode: count["rows"] if isinstance(count, Mapping) else count
            for mode, count in counts.items()
        }
        return ", ".join(f"{mode} {count}" for mode, count in rows.items())
    return f"{counts} rows"


def _mode_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield (mode, answers, accuracy, closed, without a leak, KL in traces, KL in answers)."""
    for mode in result.get("modes") or ():
        yield (
            str(mode.get("mode")),
            str(mode.get("answers")),
            *(_rate(mode.get(key)) for key in ("accuracy", "closed", "unleaked")),
            *(_kl(mode.get(key)) for key in ("trace", "answer")),
        )


def _rate(rate: Mapping[str, Any] | None) -> str:
    if not rate:
        return "-"
    change = rate.get("change") or {}
    text = (
        change_text(Change(**{key: change[key] for key in ("value", "low", "high")}))
        if change
        else ""
    )
    return f"{percent(rate['before'])} -> {percent(rate['after'])}; {text}"


def _kl(read: Mapping[str, Any] | None) -> str:
    return "-" if not read or read.get("kl") is None else f"{read['kl']:.4f}"
