"""Write GSM-Plus as an evaluation task: the problems whose answer is a number, with their perturbation's name.

    python recipes/smollm3/gsm_plus.py --out DIR --seed 42 --split testmini

qintongli/GSM-Plus (CC BY-SA 4.0, arXiv 2402.19255) is fetched from the hub. Some of its problems can't be solved on
purpose (critical thinking); those have no number to compare with and are left out, as are empty questions.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

DATASET = "qintongli/GSM-Plus"
TASK = """\
name: gsm-plus
rows: gsm-plus.jsonl
prompt: "{question}"
instruction: "Put your final answer within \\\\boxed{}."
verifier: math
"""


def task_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The dataset's rows as those of a task."""
    found = []
    for number, row in enumerate(rows):
        answer = str(row["answer"]).replace(",", "").strip()
        if row["question"] and _is_number(answer):
            kind = str(row.get("perturbation_type", ""))
            found.append(
                {"id": str(number), "question": row["question"], "answer": answer, "family": kind}
            )
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.lower() not in ("nan", "inf")


def write_task(out: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """gsm-plus.yaml and gsm-plus.jsonl in `out`."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "gsm-plus.jsonl").write_text(lines, encoding="utf-8")
    (out / "gsm-plus.yaml").write_text(TASK, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; prints how many problems were written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--seed", type=int, default=0, help="makes no difference here")
    parser.add_argument("--split", default="testmini", help="testmini or test")
    given = parser.parse_args(arguments)
    from datasets import load_dataset

    rows = task_rows(load_dataset(DATASET, split=given.split))
    write_task(given.out, rows)
    print(f"{len(rows):6d}  gsm-plus.jsonl")


if __name__ == "__main__":
    main()
