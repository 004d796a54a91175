"""Fixtures that several folders of tests share."""

from pathlib import Path

import pytest

from dualign.checkpoints.embedded import embedded_model


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The real SmolLM2-135M-Instruct as a model folder, converted once per machine."""
    return embedded_model()
