"""The tokenizer of the embedded model in small as training sets it, and data that a survey reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.conversation import RowType
from dualign.doctor.findings import Findings
from dualign.doctor.survey import SurveyInput, survey
from dualign.models.source import ModelSource
from dualign.models.tokenizer import load_tokenizer
from dualign.training.config import TrainingStage

Rows = dict[str, list[dict[str, Any]]]
Examine = Callable[..., tuple[Findings, dict[str, Any]]]


@pytest.fixture(autouse=True, scope="session")
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What `datasets` writes stays out of the user's cache."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = str(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="session")
def formats(shrunk: Path) -> Callable[[str], Any]:
    """Template name or file -> (tokenizer, template), as a stage loads them."""
    made: dict[str, Any] = {}
    start = ModelSource(base=str(shrunk))

    def load(template: str) -> Any:
        if template not in made:
            stage = TrainingStage(name="made", model=str(shrunk), template=template)
            made[template] = load_tokenizer(start, stage.template, stage.template_kwargs)
        return made[template]

    return load


@pytest.fixture
def examine(formats: Callable[[str], Any], tmp_path: Path) -> Examine:
    """Rows of each source -> what a survey finds, and its account."""

    def look(
        rows: Rows,
        *,
        template: str = "dualign",
        row_type: RowType = "conversation",
        max_tokens: int = 512,
    ) -> tuple[Findings, dict[str, Any]]:
        tokenizer, chat = formats(template)
        sources = tuple(SourceConfig(path=str(write(tmp_path, *row))) for row in rows.items())
        data = DataConfig(sources=sources, max_tokens=max_tokens)
        subject = SurveyInput(row_type=row_type, data=data, tokenizer=tokenizer, template=chat)
        findings = Findings()
        return findings, dict(survey(subject, findings))

    return look


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
