"""What the Hub checks in a model card's metadata, as far as its documentation says.

https://huggingface.co/docs/hub/model-cards and .../repositories-licenses
"""

import re
from pathlib import Path
from typing import Any

import yaml

LICENSES = frozenset(Path(__file__).with_name("licenses.txt").read_text().split())
RELATIONS = ("adapter", "finetune", "merge", "quantized")
REPO = re.compile(r"[\w.-]+(/[\w.-]+)?")
LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")


def metadata(card: str) -> Any:
    """The YAML between the card's first two lines of dashes; None when there is none."""
    found = re.match(r"\A\s*---\r?\n(.*?)\r?\n---\s*(\n|\Z)", card, re.DOTALL)
    return yaml.safe_load(found[1]) if found else None


def faults_and_warnings(card: str) -> tuple[list[str], list[str]]:
    """What is wrong with a card's metadata, and what is missing from it."""
    try:
        found = metadata(card)
    except yaml.YAMLError as error:
        return [f"metadata is not YAML: {error}"], []
    if not found:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(found, dict):
        return ['"metadata" must be an object'], []
    faults = [*_license(found), *_names(found), *_lists(found), *_model_index(found)]
    return faults, []


def _license(found: dict[str, Any]) -> list[str]:
    named = found.get("license")
    for item in named if isinstance(named, list) else [named]:
        if item is not None and item not in LICENSES:
            return [f'"license" must be one of [{", ".join(sorted(LICENSES))}]']
    if named == "other" and not found.get("license_name"):
        return ['"license_name" is required when "license" is other']
    return []


def _names(found: dict[str, Any]) -> list[str]:
    faults = []
    for key in ("base_model", "datasets"):
        value = found.get(key, [])
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, str) or not REPO.fullmatch(item):
                faults.append(
                    f'"{key}" with value "{item}" is not valid. Use a model or dataset id'
                )
    relation = found.get("base_model_relation")
    if relation is not None and relation not in RELATIONS:
        faults.append(f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]')
    for key in ("library_name", "pipeline_tag", "license_name", "license_link"):
        if key in found and not isinstance(found[key], str):
            faults.append(f'"{key}" must be a string')
    return faults


def _lists(found: dict[str, Any]) -> list[str]:
    faults = []
    tags = found.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        faults.append('"tags" must be an array of strings')
    language = found.get("language", [])
    for item in language if isinstance(language, list) else [language]:
        if not isinstance(item, str) or not LANGUAGE.fullmatch(item):
            faults.append(
                f'"language" with value "{item}" is not an ISO 639-1, 639-2 or 639-3 code'
            )
    return faults


def _model_index(found: dict[str, Any]) -> list[str]:
    index = found.get("model-index", [])
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    faults = []
    for i, model in enumerate(index):
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            faults.append(f'"model-index[{i}].name" is required')
            continue
        for j, result in enumerate(model.get("results") or []):
            faults += [f'"model-index[{i}].results[{j}].{fault}' for fault in _result(result)]
    return faults


def _result(result: Any) -> list[str]:
    if not isinstance(result, dict):
        return ['" must be an object']
    faults = []
    for key, needed in (("task", ("type",)), ("dataset", ("type", "name"))):
        value = result.get(key)
        for name in needed:
            if not isinstance(value, dict) or not isinstance(value.get(name), str):
                faults.append(f'{key}.{name}" is required')
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        return [*faults, 'metrics" is required']
    for metric in metrics:
        if not isinstance(metric, dict) or "type" not in metric or "value" not in metric:
            faults.append('metrics" need a type and a value')
    return faults
