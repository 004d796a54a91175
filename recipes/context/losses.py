"""Measure models on ledgers: the loss of numbers that were said before, by how far into the text they stand."""

import argparse
import json
import re
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel

from dualign.checkpoints.context import positions_of
from dualign.models.loading import load_checkpoint
from dualign.models.source import resolve_model

_AGAIN = re.compile(r"Again: the .*? weighs (\d+) kilos\.")
_HEAD_ROWS = 512
_MODELS = ("before", "scaled", "trained")


@torch.inference_mode()
def losses(model: PreTrainedModel, ids: list[int], places: list[int]) -> torch.Tensor:
    """Return the loss [N] of the tokens at some places of a text."""
    hidden_TD = model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    labels_N = torch.tensor(ids)[places]
    rows_ND = hidden_TD[torch.tensor(places) - 1]
    parts = zip(torch.split(rows_ND, _HEAD_ROWS), torch.split(labels_N, _HEAD_ROWS), strict=True)
    return torch.cat(
        [
            torch.nn.functional.cross_entropy(model.lm_head(rows).float(), labels, reduction="none")
            for rows, labels in parts
        ]
    )


def numbers(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """Return the places of the tokens of numbers that are said again."""
    spans = [match.span(1) for match in _AGAIN.finditer(text)]
    inside = {place for start, end in spans for place in range(start, end)}
    return [
        number for number, (start, end) in enumerate(offsets) if start in inside and end > start
    ]


def main() -> None:
    """Write losses.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--bound", type=int, required=True, help="positions of the start model")
    for name in _MODELS:
        parser.add_argument(f"--{name}", required=True)
    settings = parser.parse_args()
    texts = [json.loads(line)["text"] for line in settings.rows.read_text().splitlines()]
    table = {}
    for name in _MODELS:
        source = resolve_model(getattr(settings, name))
        tokenizer = AutoTokenizer.from_pretrained(source.base)
        model = load_checkpoint(source, dtype=torch.bfloat16)
        near, far, tokens = [], [], []
        for text in texts:
            encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
            places = numbers(text, encoded["offset_mapping"])
            values = losses(model, encoded["input_ids"], places)
            is_far = torch.tensor(places) >= settings.bound
            near.append(values[~is_far])
            far.append(values[is_far])
            tokens.append(len(encoded["input_ids"]))
        near_N, far_N = torch.cat(near), torch.cat(far)
        table[name] = {
            "positions": positions_of(model.config.to_dict()),
            "tokens": tokens,
            "loss_within": round(float(near_N.mean()), 3),
            "loss_beyond": round(float(far_N.mean()), 3),
            "numbers": [len(near_N), len(far_N)],
        }
        print(name, json.dumps(table[name]), flush=True)
    (settings.out / "losses.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
