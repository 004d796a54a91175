"""Training on a stream: its rows in place of a table's, and where it is in each checkpoint.

A rank reads its own rows, so accelerate isn't asked to deal them out; and a stream goes on from its
place, so transformers isn't asked to skip batches.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dualign.data.stream.account import Account
from dualign.data.stream.reader import Rank
from dualign.data.stream.stream import RowStream
from dualign.errors import CheckpointError
from dualign.rundir import write_json


def rank_of_process() -> Rank:
    """Return which process of the launch this is."""
    return Rank(
        index=int(os.environ.get("RANK", "0")), count=int(os.environ.get("WORLD_SIZE", "1"))
    )


class _Rows(IterableDataset[dict[str, list[int]]]):
    """The stream as torch takes it."""

    def __init__(self, stream: RowStream) -> None:
        self._stream = stream

    def __iter__(self) -> Any:
        return iter(self._stream)


class _Batches(DataLoader[Any]):
    """The batches of this process, on its device."""

    def __init__(self, rows: _Rows, *, device: torch.device, **keys: Any) -> None:
        # Else it would draw from the generator that dropout draws from, once more when it resumes.
        super().__init__(rows, generator=torch.Generator(), **keys)
        self._device = device

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            yield send_to_device(batch, self._device)


class TrainsOnStream(Trainer):
    """A trainer that reads `stream`, if it has one, instead of its training dataset."""

    stream: RowStream | None = None

    def read_stream(self, stream: RowStream) -> None:
        """Train on a stream; its place is saved with each checkpoint.

        Raises:
            CheckpointError: ranks that share rows can't each read their own.
        """
        parallel = getattr(self.accelerator, "parallelism_config", None)
        if parallel is not None and parallel.non_data_parallel_size > 1:
            raise CheckpointError(
                "data.streaming: each process reads rows of its own, and one sequence over several processes "
                "needs the same rows in them: remove streaming, or launch without sequence, context and "
                "tensor parallelism"
            )
        self.stream = stream
        self.add_callback(_SavePlace(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, **keys: Any) -> Any:
        if self.stream and isinstance(resume_from_checkpoint, str):
            path = _file(Path(resume_from_checkpoint), self.args)
            if not path.is_file():
                raise CheckpointError(
                    f"{path}: missing: the checkpoint doesn't say where its stream was"
                )
            self.stream.go_to(json.loads(path.read_text(encoding="utf-8")))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **keys)

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.stream is None:
            return super().get_train_dataloader()  # type: ignore[no-any-return]
        return _Batches(
            _Rows(self.stream),
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
            device=self.accelerator.device,
        )

    def rows_of(self, step: int) -> int:
        """Return how many packed rows this process was trained on after so many steps."""
        rows: int = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return step * rows

    def account(self) -> Account:
        """Return where the rows of all processes went until the last step."""
        assert self.stream is not None, "expected a trainer on a stream"
        own = self.stream.account(self.rows_of(self.state.global_step))
        account = Account()
        for state in gather_object([own.state()]):
            account.add(Account.from_state(state))
        return account


class _SavePlace(TrainerCallback):
    """Writes where the stream is into each checkpoint, on every rank."""

    def __init__(self, trainer: TrainsOnStream) -> None:
        self._trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # transformers counts from the step that it resumed from.
        state.epoch = state.global_step / state.max_steps
        assert self._trainer.stream is not None, "set with this callback"
        self._trainer.stream.release(self._trainer.rows_of(state.global_step))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        assert self._trainer.stream is not None, "set with this callback"
        place = self._trainer.stream.state(self._trainer.rows_of(state.global_step))
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(_file(folder, args), place)


def _file(checkpoint: Path, args: TrainingArguments) -> Path:
    return checkpoint / f"stream-{args.process_index}.json"
