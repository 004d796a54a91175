"""Stages that several runs have in common are done once, and linked into the folder of each.

A linked stage is an ordinary run directory: its files are hard links, since nobody writes into a
run directory. On a file system without links it is a copy.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dualign.engine import StageStatus
from dualign.experiments.runs import Experiment
from dualign.rundir import complete_folder, open_work, read_run
from dualign.stages import stage_kind

_ANSWERS = "samples.jsonl"


class FinishedStages:
    """The finished stages of an experiment, by name and fingerprint."""

    def __init__(self) -> None:
        self._folders: dict[tuple[str, str], Path] = {}

    def add(self, run_dirs: Iterable[Path]) -> None:
        """Add those of the run directories that are there."""
        for folder in run_dirs:
            if fingerprint := read_run(folder).get("fingerprint"):
                self._folders.setdefault((folder.name, fingerprint), folder)

    def folder(self, status: StageStatus) -> Path | None:
        """Return where a stage is finished."""
        return self._folders.get((status.entry.name, status.fingerprint))

    def link(self, statuses: Iterable[StageStatus]) -> dict[str, Path]:
        """Link every stage that is finished elsewhere; returns stage -> where it was."""
        linked = {}
        for status in statuses:
            done = read_run(status.run_dir).get("fingerprint") == status.fingerprint
            source = self.folder(status)
            if not done and source is not None and source != status.run_dir:
                _link(source, status.run_dir)
                linked[status.entry.name] = source
        return linked

    def give_answers(self, statuses: Iterable[StageStatus]) -> None:
        """Put what models that several runs share have answered into the runs' evaluations.

        A model's answers are found again by its fingerprint, the prompt and the settings, so the
        start model, say, is asked once.
        """
        statuses = [*statuses]
        fingerprints = {status.fingerprint for status in statuses}
        for status in statuses:
            kind = stage_kind(status.entry.kind)
            if kind.evaluates and read_run(status.run_dir).get("fingerprint") != status.fingerprint:
                name = status.entry.name
                folders = [folder for (stage, _), folder in self._folders.items() if stage == name]
                _give_answers(folders, status, fingerprints)


def finished_stages(experiment: Experiment) -> FinishedStages:
    """Look up what is finished: in the experiment's runs, and where its recipe ran alone."""
    finished = FinishedStages()
    folders = sorted((experiment.output_dir / "runs").glob("*/*/run.json"))
    finished.add(path.parent for path in folders)
    finished.add(experiment.finished)
    return finished


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with complete_folder(target, target.with_name(f".{target.name}.linked")) as work:
        shutil.copytree(source, work, symlinks=True, copy_function=_link_file, dirs_exist_ok=True)


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _give_answers(folders: list[Path], status: StageStatus, fingerprints: set[str]) -> None:
    answers = {row["key"]: row for folder in folders for row in _answers(folder, fingerprints)}
    if not answers:
        return
    work, starts = open_work(status.run_dir, status.fingerprint, start=False)
    file = work / _ANSWERS
    if starts == 0 and not file.exists():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in answers.values())
        file.write_text("".join(lines), encoding="utf-8")


def _answers(folder: Path, fingerprints: set[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the answers of models that no stage made, or that a stage with a fingerprint made."""
    shared: dict[str, bool] = {}
    with suppress(OSError, ValueError, KeyError):
        # Not splitlines(): JSON leaves line separators such as U+2028 unescaped.
        for line in (folder / _ANSWERS).read_text(encoding="utf-8").split("\n"):
            if not line:
                continue
            row = json.loads(line)
            model = row["model"]
            if model not in shared:
                made_by = read_run(Path(model)).get("fingerprint")
                shared[model] = made_by is None or made_by in fingerprints
            if shared[model]:
                yield {key: row[key] for key in ("key", "generated", "finished")} | (
                    {"usage": row["usage"]} if "usage" in row else {}  # of an endpoint
                )
