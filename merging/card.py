"""README.md of a merged model: its inputs and its config, for people and for the Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dualign.model_ref import ModelRef

_CARD = """\
---
{metadata}---

# {title}

Merged by `{method}` with dualign from:

| model | weights (sha256) |
|---|---|
{inputs}

Config from {config_donor}, tokenizer and template from {tokenizer_donor}. \
merge.json has all hashes, parameters and versions.

```yaml
{config}
```
"""


def write_card(work: Path, record: Mapping[str, Any], config: Path) -> None:
    """Write the card beside the weights; the inputs' own cards describe other models."""
    refs = [ModelRef.parse(model["model"]) for model in record["models"]]
    bases = [ref.name for ref in refs if ref.kind == "hub" and ref.is_plain]
    relation = {"base_model": bases, "base_model_relation": "merge"} if bases else {}
    metadata = {"library_name": "transformers", **relation, "tags": ["merge", "dualign"]}
    inputs = []
    for model in record["models"]:
        hashes = (f"{Path(file).name} {sha[:12]}" for file, sha in model["sha256"].items())
        inputs.append(f"| {model['model']} | {', '.join(hashes)} |")
    card = _CARD.format(
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        title=work.name.removeprefix(".").removesuffix(".partial"),
        method=record["method"],
        inputs="\n".join(inputs),
        config_donor=record["config_donor"],
        tokenizer_donor=record["tokenizer_donor"],
        config=config.read_text(encoding="utf-8").strip(),
    )
    (work / "README.md").write_text(card, encoding="utf-8")
