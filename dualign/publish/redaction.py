"""Records without this machine's paths: a run directory becomes `stage:NAME`, a base its hub id, a file its name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualign.publish.checks.secrets import MACHINE_PATH
from dualign.publish.lineage import Lineage
from dualign.rundir import RUN_JSON

_LOCAL_KEYS = ("_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file")
_RECORDED = (
    "name", "kind", "fingerprint", "seed", "config", "parents", "data", "rows", "metrics", "checks",
    "versions", "started", "seconds", "peak_rss_mb", "resumed",
)  # fmt: skip


def replacements(lineage: Lineage, bases: Mapping[str, str]) -> dict[str, str]:
    """Folder -> what it is called in what is published. `bases`: reference or folder -> hub id."""
    found = {str(lineage.output / name.name): f"stage:{name.name}" for name in _stages(lineage)}
    return found | {str(place): name for place, name in bases.items()}


def _stages(lineage: Lineage) -> list[Path]:
    return [one.parent for one in lineage.output.glob(f"*/{RUN_JSON}")]


def cleaned(value: Any, names: Mapping[str, str]) -> Any:
    """The JSON value with every path of this machine replaced."""
    if isinstance(value, Mapping):
        return {clean_text(str(key), names): cleaned(one, names) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(one, names) for one in value]
    return clean_text(value, names) if isinstance(value, str) else value


def clean_text(text: str, names: Mapping[str, str]) -> str:
    """The text with known folders by their names, and of other paths only the last part."""
    for place in sorted(names, key=len, reverse=True):
        text = text.replace(place, names[place])
    if Path(text).is_absolute() and text.count("/") > 1 and "\n" not in text:
        return Path(text).name
    return MACHINE_PATH.sub(lambda found: Path(found[0].replace("\\", "/")).name, text)


def record_of(stage: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A stage's run.json for the public: no paths, and no rows of the data that were screened out."""
    kept = {key: stage[key] for key in _RECORDED if key in stage}
    rows = kept.get("rows")
    if isinstance(rows, Mapping):
        kept["rows"] = {key: value for key, value in rows.items() if key != "removed"}
    return dict(cleaned(kept, names))


def adapter_config(
    text: str, *, base: str | None, revision: str | None, names: Mapping[str, str]
) -> str:
    """adapter_config.json with its base by hub id and revision."""
    config = json.loads(text)
    named = {"base_model_name_or_path": base, "revision": revision}
    return _dump(cleaned(config | (named if base else {}), names))


def settings(text: str, names: Mapping[str, str]) -> str:
    """config.json, tokenizer_config.json or another settings file without the place it was loaded from.

    What isn't a JSON object stays as it is; the checks say so.
    """
    try:
        config = json.loads(text)
    except ValueError:
        return text
    if not isinstance(config, dict):
        return text
    kept = {key: value for key, value in config.items() if key not in _LOCAL_KEYS}
    changed = cleaned(kept, names)
    return text if changed == config else _dump(changed)


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
