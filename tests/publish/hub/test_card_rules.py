"""The hub on loopback refuses what the Hub refuses in a card's metadata."""

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCardData

from tests.publish.hub.card_rules import faults_and_warnings

GOOD = {
    "license": "apache-2.0",
    "base_model": ["HuggingFaceTB/SmolLM2-135M-Instruct"],
    "base_model_relation": "adapter",
    "datasets": ["ada/rows"],
    "language": ["en", "fra"],
    "tags": ["dualign"],
    "pipeline_tag": "text-generation",
    "library_name": "peft",
}


def told(metadata: object) -> tuple[list[str], list[str]]:
    return faults_and_warnings(f"---\n{yaml.safe_dump(metadata)}---\n# Model\n")


def test_full_metadata_has_no_fault() -> None:
    assert told(GOOD) == ([], [])


def test_results_as_huggingface_hub_writes_them_have_no_fault() -> None:
    result = EvalResult(
        task_type="text-generation",
        dataset_type="sums",
        dataset_name="sums",
        metric_type="accuracy",
        metric_value=0.8,
    )
    data = ModelCardData(license="mit", model_name="m", eval_results=[result])
    assert told(data.to_dict()) == ([], [])


def test_a_card_without_metadata_is_warned_about() -> None:
    assert faults_and_warnings("# Model\n") == ([], ["empty or missing yaml metadata in repo card"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"license": "license"}, '"license" must be one of'),
        ({"license": "Apache-2.0"}, '"license" must be one of'),
        ({"license": "other"}, '"license_name" is required'),
        ({"base_model": "/home/ada/runs/sft"}, '"base_model" with value "/home/ada/runs/sft"'),
        ({"base_model": "a/b/c"}, '"base_model" with value'),
        ({"base_model_relation": "child"}, '"base_model_relation" must be one of'),
        ({"datasets": ["rows.jsonl/x/y"]}, '"datasets" with value'),
        ({"language": "English"}, '"language" with value "English"'),
        ({"tags": "dualign"}, '"tags" must be an array'),
        ({"tags": [1]}, '"tags" must be an array of strings'),
        ({"pipeline_tag": 3}, '"pipeline_tag" must be a string'),
        ({"model-index": {"name": "m"}}, '"model-index" must be an array'),
        ({"model-index": [{"results": []}]}, '"model-index[0].name" is required'),
        (
            {"model-index": [{"name": "m", "results": [{"task": {"type": "t"}}]}]},
            '"model-index[0].results[0].dataset.type" is required',
        ),
    ],
)
def test_a_fault_is_named(change: dict[str, object], words: str) -> None:
    faults, _ = told(GOOD | change)
    assert any(words in fault for fault in faults), faults


def test_metadata_that_is_not_yaml_is_a_fault() -> None:
    assert "not YAML" in faults_and_warnings("---\nlicense: [mit\n---\n")[0][0]
