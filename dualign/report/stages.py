"""Sections on how the models were made: curves, rows, cost, checks, settings, versions."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualign.evaluation.scores import short_label
from dualign.generation.config import endpoint_of
from dualign.model_ref import StageRef
from dualign.report.blocks import Block, Details, Gallery, Paragraph, Picture, Section, Table
from dualign.report.conclusions import ends_text
from dualign.report.judges import judge_sections
from dualign.report.key_figures import duration
from dualign.report.plots import cost_plot, kl_plot, loss_plot, rate_plot, reward_plot
from dualign.report.runs import ModelEvaluation, StageRun, is_preference, is_rated, is_training
from dualign.report.samples import plain

_MIB_PER_GIB = 1024
_OPTIONAL_COUNTS = ("validation", "repeats", "examples")


def facts(
    stages: Sequence[StageRun], models: Sequence[ModelEvaluation]
) -> tuple[tuple[str, str], ...]:
    """Return the facts at the head: base and final model, date, stages, time, memory."""
    started = sorted(
        str(stage.record["started"]) for stage in stages if stage.record.get("started")
    )
    peak = max((float(stage.record.get("peak_rss_mb") or 0) for stage in stages), default=0.0)
    facts = {
        "Base model": _base_model(stages),
        "Final model": short_label(models[-1].scores.model) if models else "",
        "Started": started[0].replace("T", " ").replace("+00:00", " UTC") if started else "",
        "Stages": ", ".join(stage.name for stage in stages),
        "Time": duration(sum(float(stage.record.get("seconds") or 0) for stage in stages)),
        "Peak memory": f"{peak / _MIB_PER_GIB:.1f} GiB" if peak else "",
    }
    return tuple((name, value) for name, value in facts.items() if value)


def _base_model(stages: Sequence[StageRun]) -> str:
    """Return the first model of a recipe that no stage made."""
    for stage in stages:
        model = (stage.record.get("config") or {}).get("model")
        if isinstance(model, str) and not StageRef.parse(model) and endpoint_of(model) is None:
            return Path(model).name if Path(model).is_absolute() else model
    return ""


def training_sections(stages: Sequence[StageRun]) -> Iterator[Section]:
    """Yield the curves of the training stages, then the rows of every stage that counted some."""
    training = [stage for stage in stages if is_training(stage)]
    if training:
        blocks = [block for stage in training for block in _curve_blocks(stage)]
        yield Section(name="curves", title="Training curves", blocks=tuple(blocks))
    counted = [stage for stage in stages if stage.record.get("rows")]
    if counted:
        blocks = [block for stage in counted for block in _row_blocks(stage)]
        yield Section(name="rows", title="Rows: what went in, what was kept", blocks=tuple(blocks))
    traced = [stage for stage in stages if (stage.record.get("metrics") or {}).get("trace_tokens")]
    if traced:
        yield Section(name="traces", title="Traces", blocks=tuple(map(_trace_table, traced)))
    paired = [stage for stage in stages if (stage.record.get("metrics") or {}).get("lengths")]
    if paired:
        blocks = [block for stage in paired for block in _length_blocks(stage)]
        yield Section(name="pair-lengths", title="Lengths of pairs", blocks=tuple(blocks))
    yield from judge_sections(stages)


def _trace_table(stage: StageRun) -> Table:
    metrics = stage.record["metrics"]
    rows = [
        ("rows in", metrics["questions"]),
        ("think rows made", metrics["think_rows"]),
        ("no_think rows", metrics["no_think_rows"]),
        *((f"without a trace: {reason}", n) for reason, n in metrics["without_trace"].items()),
        ("tries", metrics["tries"]),
        *((f"rejected: {reason}", n) for reason, n in metrics["rejected"].items()),
        *((f"trace tokens, {name}", n) for name, n in metrics["trace_tokens"].items()),
    ]
    model = metrics["model"]["model"]
    return Table(
        columns=("", "count"),
        rows=tuple((name, _whole(number)) for name, number in rows),
        caption=f"{stage.name}: traces by {model}",
    )


def _length_blocks(stage: StageRun) -> Iterator[Block]:
    """Yield the lengths of a pairs stage, as `preference/pair_lengths.py` has them, and its warnings."""
    lengths = stage.record["metrics"]["lengths"]
    rows = [
        (
            mode,
            _whole(of_mode["pairs"]),
            f"{of_mode['chosen']:,.1f}",
            f"{of_mode['rejected']:,.1f}",
            f"{of_mode['chosen_longer']:.0%}",
            f"{of_mode['correlation']:+.2f}",
        )
        for mode, of_mode in lengths["modes"].items()
    ]
    yield Table(
        columns=("mode", "pairs", "chosen", "rejected", "chosen longer", "correlation"),
        rows=tuple(rows),
        caption=f"{stage.name}: means in {lengths['unit']}; correlation of length with preference",
    )
    for mode, of_mode in lengths["modes"].items():
        if "warning" in of_mode:
            yield Paragraph(text=f"{stage.name}, {mode}: {of_mode['warning']}.")


def _curve_blocks(stage: StageRun) -> Iterator[Block]:
    pictures = [loss_plot(f"loss-{stage.name}", stage.name, stage.log)]
    if is_preference(stage):
        pictures += _reward_plots(stage)
    if any("learning_rate" in row for row in stage.log):
        pictures.append(rate_plot(f"rate-{stage.name}", stage.name, stage.log))
    yield Gallery(pictures=tuple(pictures))
    names = sorted({_shown_key(key) for row in stage.log for key in row} - {""}, key=_key_order)
    rows = [(name, ends_text(stage, name), ends_text(stage, f"eval_{name}")) for name in names]
    yield Table(
        columns=("first to last logged", "training", "validation"),
        rows=tuple(row for row in rows if row[1:] != ("-", "-")),
        caption=f"{stage.name}: losses{' and rewards' if is_preference(stage) else ''}",
    )


def _shown_key(key: str) -> str:
    """Return a logged loss or reward without `eval_`; "" for other keys and rewards by source."""
    name = key.removeprefix("eval_")
    if name == "loss" or name.startswith("loss/"):
        return name
    shown = name == "kl" or (name.startswith("rewards/") and "/source/" not in name)
    return name if shown else ""


def _key_order(name: str) -> tuple[bool, bool, str]:
    """Sort losses first, the whole before its modes, sources last."""
    return name.startswith("rewards/"), "/source/" in name, name


def _reward_plots(stage: StageRun) -> Iterator[Picture]:
    for measure in ("rewards", "margins", "accuracies"):
        for prefix in ("", "eval_"):
            keys = {"rewards": ("chosen", "rejected")}.get(measure, (measure,))
            starts = tuple(f"{prefix}rewards/{key}/" for key in keys)
            if any(key.startswith(starts) for row in stage.log for key in row):
                name = f"{prefix.replace('_', '-')}{measure}-{stage.name}"
                yield reward_plot(
                    name, stage.name, stage.log, measure, prefix, rated=is_rated(stage)
                )
    if any("kl" in row for row in stage.log):
        yield kl_plot(f"kl-{stage.name}", stage.name, stage.log)


def _row_blocks(stage: StageRun) -> Iterator[Block]:
    rows = stage.record["rows"]
    by = rows.get("by") or ()
    counts = [
        "in",
        "kept",
        *(key for key in _OPTIONAL_COUNTS if any(e.get(key) for e in (rows, *by))),
    ]
    keys = (*counts, "tokens", "supervised_tokens", "mean_tokens", "max_tokens")
    entries = [_row_cells(str(e.get("source", "-")), str(e.get("mode", "-")), e, keys) for e in by]
    total = {**_token_totals(by), **rows}
    yield Table(
        columns=("source", "mode", *counts, "tokens", "supervised", "mean", "longest", "dropped"),
        rows=(*entries, _row_cells("all", "", total, keys)),
        text_columns=2,
        text_last=True,
        caption=f"{stage.name} ({stage.kind})",
    )
    missing = [(name, gap) for name, gap in _gaps(rows) if gap]
    if missing:
        words = ", ".join(f"{name}: {gap}" for name, gap in missing)
        text = f"{stage.name}: rows neither kept nor dropped, which should not be: {words}."
        yield Paragraph(text=text)


def _row_cells(
    source: str, mode: str, entry: Mapping[str, Any], keys: Sequence[str]
) -> tuple[str, ...]:
    dropped = entry.get("dropped") or {}
    reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items() if count)
    return (source, mode, *(_whole(entry.get(key)) for key in keys), reasons or "none")


def _token_totals(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    totals: dict[str, Any] = {}
    for key in ("tokens", "supervised_tokens"):
        values = [entry[key] for entry in entries if entry.get(key) is not None]
        if values:
            totals[key] = sum(values)
    longest = [entry["max_tokens"] for entry in entries if entry.get("max_tokens") is not None]
    # Tokens are counted over what is trained on: kept rows less validation, with their repeats.
    examples = sum(entry.get("examples", entry.get("kept")) or 0 for entry in entries)
    if longest:
        totals["max_tokens"] = max(longest)
    if examples and "tokens" in totals:
        totals["mean_tokens"] = totals["tokens"] / examples
    return totals


def _gaps(rows: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for entry in (rows, *(rows.get("by") or ())):
        name = f"{entry.get('source', 'all')} {entry.get('mode', '')}".strip()
        yield (
            name,
            entry.get("in", 0) - entry.get("kept", 0) - sum((entry.get("dropped") or {}).values()),
        )


def _whole(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}"


def provenance_sections(stages: Sequence[StageRun]) -> Iterator[Section]:
    """Yield cost, checks, settings, and seeds, data and versions."""
    yield _cost_section(stages)
    checks = [
        (stage.name, str(name), plain(value))
        for stage in stages
        for name, value in (stage.record.get("checks") or {}).items()
    ]
    if checks:
        table = Table(columns=("stage", "check", "found"), rows=tuple(checks), text_columns=3)
        yield Section(name="checks", title="What the stages checked themselves", blocks=(table,))
    yield Section(
        name="settings", title="Settings", blocks=tuple(_settings(stage) for stage in stages)
    )
    yield Section(
        name="versions", title="Seeds, fingerprints, versions", blocks=tuple(_origin(stages))
    )


def _cost_section(stages: Sequence[StageRun]) -> Section:
    seconds = {stage.name: float(stage.record.get("seconds") or 0) for stage in stages}
    memory = {
        stage.name: float(stage.record.get("peak_rss_mb") or 0) / _MIB_PER_GIB for stage in stages
    }
    rows = [
        (
            s.name,
            s.kind,
            duration(seconds[s.name]),
            f"{memory[s.name]:.2f}",
            str(s.record.get("resumed", 0)),
        )
        for s in stages
    ]
    rows.append(("all", "", duration(sum(seconds.values())), f"{max(memory.values()):.2f}", ""))
    columns = ("stage", "kind", "time", "peak memory, GiB", "times resumed")
    return Section(
        name="cost",
        title="Time and memory",
        blocks=(
            Table(columns=columns, rows=tuple(rows), text_columns=2),
            Gallery(
                pictures=(
                    cost_plot("cost-time", "Time of each stage, s", seconds, digits=0),
                    cost_plot("cost-memory", "Peak memory of each stage, GiB", memory, digits=2),
                )
            ),
        ),
    )


def _settings(stage: StageRun) -> Details:
    text = json.dumps(stage.record.get("config") or {}, indent=2, ensure_ascii=False)
    return Details(title=f"{stage.name} ({stage.kind})", text=text)


def _origin(stages: Sequence[StageRun]) -> Iterator[Block]:
    rows = [
        (
            stage.name,
            str(stage.record.get("seed", "-")),
            str(stage.record.get("started", "-")),
            str(stage.record.get("fingerprint", "-"))[:16],
            ", ".join(stage.record.get("parents") or {}) or "-",
        )
        for stage in stages
    ]
    yield Table(
        columns=("stage", "seed", "started", "fingerprint", "made from"),
        rows=tuple(rows),
        text_columns=5,
    )
    data = [
        (
            stage.name,
            str(d.get("source", "-")),
            _whole(d.get("rows")),
            str(d.get("sha256", "-"))[:16],
        )
        for stage in stages
        for d in stage.record.get("data") or ()
    ]
    if data:
        yield Table(columns=("stage", "data", "rows", "sha256"), rows=tuple(data), text_columns=2)
    yield from _versions(stages)


def _versions(stages: Sequence[StageRun]) -> Iterator[Block]:
    """List each package once; with several versions if stages ran with different ones."""
    versions_of: dict[str, list[str]] = {}
    for stage in stages:
        for package, version in (stage.record.get("versions") or {}).items():
            if version not in versions_of.setdefault(package, []):
                versions_of[package].append(version)
    if versions_of:
        words = ", ".join(
            f"{package} {' and '.join(versions)}" for package, versions in versions_of.items()
        )
        yield Paragraph(text=f"Versions: {words}.")
