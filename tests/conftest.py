"""Fixtures that several folders of tests share."""

import os
from pathlib import Path

import pytest

from dualign.checkpoints.embedded import embedded_model


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The real SmolLM2-135M-Instruct as a model folder, converted once per machine."""
    return embedded_model()


@pytest.fixture(autouse=True, scope="session")
def tokens_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data stays out of the user's cache."""
    os.environ["DUALIGN_TOKENS"] = str(tmp_path_factory.mktemp("tokens"))
