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
def caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data, and what is known of files, stay out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["DUALIGN_TOKENS"] = str(folder / "tokens")
    os.environ["DUALIGN_DIGESTS"] = str(folder / "digests.json")
