"""Records without this machine's paths.

A run directory becomes `stage:NAME`, a base its hub id, any other path its last part.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualign.publish.lineage import Lineage
from dualign.rundir import RUN_JSON

_ROOTS = "home|Users|root|mnt|data|tmp|var|scratch|work|workspace|opt|srv|media|nfs|gpfs|lustre"
# gpt-oss' own template names the drive of its sandbox so, on every machine.
_PUBLIC = r"/mnt/data(?![\w/.-])"
MACHINE_PATH = re.compile(
    rf"(?<![\w./:-])(?!{_PUBLIC})(?:/(?:{_ROOTS})(?:/[^\s\"'<>|`)]+)+|~/[^\s\"'<>|`)]+|[A-Za-z]:\\+[^\s\"'<>|]+)"
)
_PRIVATE_ADDRESS = re.compile(
    r"https?://(?:\d+(?:\.\d+){3}|\[[0-9A-Fa-f:]+\]|[\w-]+)(?::\d+)?(?![\w.:-])[^\s\\\"'<>|`)]*"
)
"""A server by a number, or by a name that only its own network knows."""
_LOCAL_KEYS = ("_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file")
_RECORDED = (
    "name", "kind", "fingerprint", "seed", "config", "parents", "data", "rows", "metrics", "checks",
    "versions", "started", "seconds", "peak_rss_mb", "resumed",
)  # fmt: skip


def replacements(lineage: Lineage, bases: Mapping[str, str]) -> dict[str, str]:
    """Map folders of this machine to public names. `bases`: reference or folder -> hub id."""
    stages = [file.parent.name for file in lineage.output.glob(f"*/{RUN_JSON}")]
    return {str(lineage.output / name): f"stage:{name}" for name in stages} | dict(bases)


def redact(value: Any, names: Mapping[str, str]) -> Any:
    """Return the JSON value with every path of this machine replaced."""
    if isinstance(value, Mapping):
        return {redact_text(str(key), names): redact(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, names) for item in value]
    return redact_text(value, names) if isinstance(value, str) else value


def redact_text(text: str, names: Mapping[str, str]) -> str:
    """Replace known folders by their names, and other paths by their last part."""
    for place in sorted(names, key=len, reverse=True):
        text = text.replace(place, names[place])
    if Path(text).is_absolute() and text.count("/") > 1 and "\n" not in text:
        return Path(text).name
    return MACHINE_PATH.sub(lambda match: Path(match[0].replace("\\", "/")).name, text)


def redact_record(record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a stage's run.json without paths, private servers and samples of screened rows."""
    public = {key: record[key] for key in _RECORDED if key in record}
    rows = public.get("rows")
    if isinstance(rows, Mapping):
        public["rows"] = {key: value for key, value in rows.items() if key != "removed"}
    text = json.dumps(redact(public, names), ensure_ascii=False, default=str)
    return dict(json.loads(_PRIVATE_ADDRESS.sub("http://private", text)))


def redact_adapter_config(
    text: str, *, base: str | None, revision: str | None, names: Mapping[str, str]
) -> str:
    """Return adapter_config.json with its base by hub id and revision."""
    config = json.loads(text)
    public = {"base_model_name_or_path": base, "revision": revision} if base else {}
    return _dump(redact(config | public, names))


def redact_settings(text: str, names: Mapping[str, str]) -> str:
    """Return config.json or another settings file without the place it was loaded from.

    Text that isn't a JSON object is returned as it is; the checks report it.
    """
    try:
        config = json.loads(text)
    except ValueError:
        return text
    if not isinstance(config, dict):
        return text
    public = redact({key: value for key, value in config.items() if key not in _LOCAL_KEYS}, names)
    return text if public == config else _dump(public)


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
