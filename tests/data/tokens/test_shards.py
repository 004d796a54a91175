"""Parts of a flat batch: together they are the batch, with labels that were shifted before the cut."""

import pytest
import torch

from dualign.data.tokens.collate import PackedCollator
from dualign.data.tokens.shards import WHOLE, ShardCollator
from dualign.models.pairs import PairCollator

ROW = {
    "input_ids": [11, 12, 13, 21, 22],
    "labels": [-100, 12, 13, -100, 22],
    "seq_lengths": [3, 2],
    "doc_groups": [4, 7],
}
PAIR = {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6], "group": 2}


def test_labels_are_shifted_before_the_cut_and_padding_is_a_segment_of_its_own() -> None:
    collator = PackedCollator(by_document=True)
    first, second = (ShardCollator(collator=collator, place=i, parts=2)([ROW]) for i in (0, 1))
    assert first["input_ids"].tolist() == [[11, 12, 13]]
    assert second["input_ids"].tolist() == [[21, 22, 0]]
    assert first["shift_labels"].tolist() == [[12, 13, -100]]
    assert second["shift_labels"].tolist() == [[22, -100, -100]]
    assert "labels" not in first
    assert first["position_ids"].tolist() == [[0, 1, 2]]
    assert second["position_ids"].tolist() == [[0, 1, 0]]
    assert first["group_ids"].tolist() == [[4, 4, 4]]
    assert second["group_ids"].tolist()[0][:2] == [7, 7]
    for part in (first, second):  # attention is computed over the whole row
        assert part["segments"].query_lengths == (3, 2, 1)
        assert part["segments"].key_segments == ((0,), (1,), (2,))
        assert part[WHOLE]["input_ids"].tolist() == [[11, 12, 13, 21, 22, 0]]


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_the_parts_of_a_row_are_the_row(parts: int) -> None:
    whole = PackedCollator(by_document=True)([ROW])
    shards = [
        ShardCollator(collator=PackedCollator(by_document=True), place=i, parts=parts)([ROW])
        for i in range(parts)
    ]
    for name in ("input_ids", "position_ids", "group_ids"):
        joined = torch.cat([shard[name] for shard in shards], dim=1)
        assert joined[:, :5].equal(whole[name]), name
        assert len({shard[name].shape for shard in shards}) == 1
    labels = torch.cat([shard["shift_labels"] for shard in shards], dim=1)
    assert labels[:, :4].equal(whole["labels"][:, 1:])
    assert (labels[:, 4:] == -100).all()


def test_a_pair_is_cut_with_the_label_of_its_last_position() -> None:
    collator = PairCollator(layout="shared")
    whole = collator([PAIR])
    shards = [ShardCollator(collator=collator, place=i, parts=2)([PAIR]) for i in (0, 1)]
    tokens = whole["input_ids"].shape[1]
    for name in ("input_ids", "shift_labels"):
        assert torch.cat([part[name] for part in shards], dim=1)[:, :tokens].equal(whole[name])
    for part in shards:  # what is of pairs, and no positions, stays whole
        assert part["group_ids"].tolist() == [2]
        assert part["prompt_lengths"] == (3,)
        assert part["answer_lengths"] == (2, 1)
