"""The encoder of each type of row: ENCODERS. A pair and a rated answer are a prompt's tokens and those of its
answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets

from dualign.data.conversation import PreferencePair, RatedAnswer, RowType
from dualign.data.faults import RowError
from dualign.data.tokens.encoding import (
    ROW_FEATURES,
    TOKENS,
    Encoder,
    ExampleEncoder,
    PendingRow,
    Texts,
    conversations_of,
    repairs_of,
)
from dualign.data.tokens.labels import Examples, identical_pair


@dataclass(frozen=True, kw_only=True)
class _PairEncoder(Encoder):
    """Rows -> pairs. A pair's tokens are those of its prompt and both answers."""

    features: ClassVar[datasets.Features] = datasets.Features(
        {"prompt_ids": TOKENS, "chosen_ids": TOKENS, "rejected_ids": TOKENS, **ROW_FEATURES}
    )
    row_type = "pair"
    conversations_per_row = 2

    def _render_all(self, parsed: PreferencePair) -> list[Texts]:
        return [self._render(conversation, "last") for conversation in conversations_of(parsed)]

    def _compared(self, examples: list[Examples]) -> list[Examples]:
        fault = identical_pair(*examples)
        return examples if fault is None else [fault] * len(examples)

    def _entry(self, row: PendingRow, examples: list[Examples]) -> dict[str, Any]:
        chosen, rejected = examples
        for of_answer in (chosen, rejected):
            if isinstance(of_answer, RowError):
                return self._dropped(self._check_policy(of_answer), row.row)
        assert isinstance(chosen, list) and isinstance(rejected, list)
        prompt_ids, chosen_ids = chosen[0].prompt_and_answer()
        other_prompt, rejected_ids = rejected[0].prompt_and_answer()
        assert prompt_ids == other_prompt, (
            "encode proved that both start with the prompt's own tokens"
        )
        supervised = len(chosen_ids) + len(rejected_ids)
        return {
            "prompt_ids": prompt_ids,
            "chosen_ids": chosen_ids,
            "rejected_ids": rejected_ids,
            "row": row.row,
            "mode": chosen[0].mode,
            "code": "",
            "tokens": len(prompt_ids) + supervised,
            "supervised": supervised,
            "repairs": repairs_of(row.parsed),
            "setting": self._setting(row),
        }


@dataclass(frozen=True, kw_only=True)
class _RatedEncoder(Encoder):
    """Rows -> a prompt, its answer and whether that is a good one."""

    features: ClassVar[datasets.Features] = datasets.Features(
        {
            "prompt_ids": TOKENS,
            "answer_ids": TOKENS,
            "desirable": datasets.Value("bool"),
            **ROW_FEATURES,
        }
    )
    row_type = "rated"
    conversations_per_row = 1

    def _render_all(self, parsed: RatedAnswer) -> list[Texts]:
        return [self._render(conversation, "last") for conversation in conversations_of(parsed)]

    def _entry(self, row: PendingRow, examples: list[Examples]) -> dict[str, Any]:
        (of_row,) = examples
        if isinstance(of_row, RowError):
            dropped = self._dropped(self._check_policy(of_row), row.row)
            return {**dropped, "desirable": False}
        assert isinstance(row.parsed, RatedAnswer), "a row without a fault was parsed"
        prompt_ids, answer_ids = of_row[0].prompt_and_answer()
        repairs = [repairs_of(row.parsed), self.data.too_long if of_row[0].cut else ""]
        return {
            "prompt_ids": prompt_ids,
            "answer_ids": answer_ids,
            "desirable": row.parsed.desirable,
            "row": row.row,
            "mode": of_row[0].mode,
            "code": "",
            "tokens": len(prompt_ids) + len(answer_ids),
            "supervised": len(answer_ids),
            "repairs": ",".join(filter(None, repairs)),
            "setting": self._setting(row),
        }


ENCODERS: Mapping[RowType, type[Encoder]] = {
    encoder.row_type: encoder for encoder in (ExampleEncoder, _PairEncoder, _RatedEncoder)
}
