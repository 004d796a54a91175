"""README.md of a merged model: what it was made of, for people and for the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dualign.model_ref import ModelRef


def write_card(work: Path, record: Mapping[str, Any], config: Path) -> None:
    """Write it beside the weights; an input's own card isn't copied, as it is another model's."""
    refs = [ModelRef.parse(model["model"]) for model in record["models"]]
    front = {
        "library_name": "transformers",
        "base_model": [ref.name for ref in refs if ref.kind == "hub" and ref.is_plain],
        "base_model_relation": "merge",
        "tags": ["merge", "dualign"],
    }
    if not front["base_model"]:
        del front["base_model"], front["base_model_relation"]
    lines = ["---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---", ""]
    lines += [f"# {work.name.removeprefix('.').removesuffix('.partial')}", ""]
    lines += [f"Merged by `{record['method']}` with dualign from:", ""]
    lines += ["| model | weights (sha256) |", "|---|---|"]
    for one in record["models"]:
        hashes = ", ".join(f"{Path(file).name} {sha[:12]}" for file, sha in one["sha256"].items())
        lines.append(f"| {one['model']} | {hashes} |")
    lines += [
        "",
        f"Config from {record['config_donor']}, tokenizer and template from "
        f"{record['tokenizer_donor']}. merge.json has all hashes, parameters and versions.",
        "",
        "```yaml",
        config.read_text(encoding="utf-8").strip(),
        "```",
        "",
    ]
    (work / "README.md").write_text("\n".join(lines), encoding="utf-8")
