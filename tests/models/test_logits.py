"""Where the saved model is computed beside the live one."""

import pytest
import torch
from torch import Tensor

from dualign.models.logits import _where_it_fits


def test_a_card_without_room_for_a_second_model_leaves_it_to_the_cpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is known at the end of a training that took hours: an error there would lose all of it."""
    places: list[str] = []

    def compute(device: torch.device) -> Tensor:
        places.append(device.type)
        if device.type != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.ones(1)

    assert _where_it_fits(compute, torch.device("meta")).item() == 1
    assert places == ["meta", "cpu"]
    assert "no room for a second model" in caplog.text
    assert _where_it_fits(compute, torch.device("cpu")).item() == 1
