"""Answers on disk after a crash."""

import json
from pathlib import Path

from dualign.generation.samples import AnswerRecord, SampleFile


def test_a_crash_within_a_character_costs_one_answer(tmp_path: Path) -> None:
    path = tmp_path / "generations.jsonl"
    lines = [
        json.dumps(AnswerRecord(key=key, generated=text, finished=True).line(), ensure_ascii=False)
        for key, text in (("a", "\u6771 \u2028 \u4eac"), ("b", "\u5927\u962a"))
    ]
    first, second = (line.encode() + b"\n" for line in lines)
    path.write_bytes(first + second[: second.index("\u962a".encode()) + 1])
    assert list(SampleFile(path).answered) == ["a"]
    assert path.read_bytes() == first
    file = SampleFile(path)
    file.append([AnswerRecord(key="b", generated="\u5927\u962a", finished=True)])
    assert path.read_bytes() == first + second


def test_fields_of_rows_in_files_of_earlier_versions_are_no_answers(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    record = AnswerRecord(key="a", generated="four", finished=True)
    fields = {"more": "of it", "token_ids": "7", "likelihoods": None}
    path.write_text(json.dumps(fields | record.line()) + "\n", encoding="utf-8")
    assert SampleFile(path).answered == {"a": record}
