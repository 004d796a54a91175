"""What a training stage tells of itself while it trains."""

import json
from pathlib import Path

from transformers import TrainerControl, TrainerState, TrainingArguments

from dualign.rundir import open_work
from dualign.training.progress import TellProgress


def test_log_is_whole_again_after_it_could_not_be_written(tmp_path: Path) -> None:
    """Nothing is missing, and nothing is there twice, after a full disk and after a measurement of a pause."""
    work, _ = open_work(tmp_path / "sft", "abc")
    args, control = TrainingArguments(str(work / "checkpoints"), use_cpu=True), TrainerControl()
    state = TrainerState(max_steps=9, is_world_process_zero=True)
    tell, log = TellProgress(work), work / "log.jsonl"
    tell.on_train_begin(args, state, control)

    def log_step(step: int) -> None:
        state.log_history.append({"step": step, "loss": 1.0})
        tell.on_log(args, state, control)

    def written() -> list[int]:
        return [json.loads(line)["step"] for line in log.read_text().splitlines()]

    log_step(1)
    log_step(2)
    assert written() == [1, 2]
    log.unlink()
    log.symlink_to("/dev/full")  # which must not be read: it has no end
    log_step(3)
    log.unlink()
    log_step(4)
    assert written() == [1, 2, 3, 4]
    del state.log_history[-1]
    log_step(5)
    assert written() == [1, 2, 3, 5]
