"""Two tiny models of one shape: one that has learnt four sums by heart in both modes, one that knows nothing."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.chat_model import make_model


@pytest.fixture(scope="session")
def untaught(learnt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "untaught"
    tokenizer = AutoTokenizer.from_pretrained(learnt)
    make_model(tokenizer, seed=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
