"""What a training stage says of its rows before the first step."""

import pytest

from dualign.data.config import DataConfig
from dualign.preference.config import PreferenceStage
from dualign.sft.config import SFTStage

DATA = DataConfig(sources=(), packing="none")
STAGES = [
    SFTStage(name="sft", model="m", data=DATA),
    PreferenceStage(name="apo", model="m", data=DATA),
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.kind)
@pytest.mark.parametrize(
    ("kept", "warns"),
    [
        ({"no_think": 9}, True),
        ({"no_think": 9, "think": 0}, True),
        ({"no_think": 9, "text": 9}, True),
        ({"no_think": 9, "think": 1}, False),
        ({"think": 9}, False),  # reasoning mid-training
        ({"text": 9}, False),
    ],
)
def test_rows_of_no_think_alone_are_warned_of(
    stage: SFTStage | PreferenceStage, kept: dict[str, int], warns: bool
) -> None:
    notes = stage.data_notes({"by": [{"mode": mode, "kept": n} for mode, n in kept.items()]})
    assert len(notes) == warns
    assert not warns or "kind: traces" in notes[0]
