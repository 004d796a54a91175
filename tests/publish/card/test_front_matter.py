"""The card: metadata that the hub takes, and sections of the user's that outlive a publication."""

from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from dualign.evaluation.scores import ModelScores
from dualign.publish.base import Base
from dualign.publish.card.front_matter import (
    BEGIN,
    END,
    Metadata,
    front_matter,
    make_card,
    relation_of,
)
from dualign.publish.checks.documents import metadata_faults
from dualign.publish.lineage import Root
from dualign.publish.sources import DataSource
from tests.publish.hub.card_rules import faults_and_warnings


def base(name: str | None = "acme/base") -> Base:
    return Base(root=Root(reference=name or "/x/y", revision=None), id=name, revision="a" * 40)


def source(hub_id: str | None) -> DataSource:
    return DataSource(
        stage="sft", label="rows", hub_id=hub_id, configuration=None, split="train", revision=None,
        made_by=None, sampled=False, sha256=None, rows=10, kept_rows=9, modes={"think": (9, 90, 1.0)},
    )  # fmt: skip


def metadata(**changes: object) -> Metadata:
    cell = {"accuracy": 0.8, "accuracy_ci": [0.65, 0.9], "n": 40}
    scores = ModelScores(model="m", tasks={"adding up": {"think": cell, "no_think": {**cell, "accuracy": 0.1, "accuracy_ci": [0.04, 0.23]}}})  # fmt: skip
    whole = {
        "repo_id": "someone/tiny", "relation": "finetune", "bases": (base(),), "license": "mit", "languages": ("en",),
        "sources": (source("acme/rows"), source(None), source("acme/rows")), "scores": scores, "adapter": False, "merged": True, "task_sources": {},
    }  # fmt: skip
    return Metadata(**{**whole, **changes})


def test_the_metadata_names_license_base_data_and_library() -> None:
    found = front_matter(metadata()).to_dict()
    assert found["license"] == "mit"
    assert (found["base_model"], found["base_model_relation"]) == ("acme/base", "finetune")
    assert found["datasets"] == ["acme/rows"], "each once, and no file of the user's"
    assert (found["library_name"], found["pipeline_tag"]) == ("transformers", "text-generation")
    assert found["language"] == ["en"] and "merge" in found["tags"]
    assert front_matter(metadata(adapter=True)).library_name == "peft"


def test_results_are_listed_by_mode_with_their_intervals() -> None:
    found = front_matter(metadata()).to_dict()
    name, results = model_index_to_eval_results(found["model-index"])
    assert name == "tiny"
    assert [(result.dataset_config, result.metric_value) for result in results] == [
        ("think", 80.0),
        ("no_think", 10.0),
    ]
    assert results[0].metric_args["confidence_interval_95"] == [65.0, 90.0]
    assert "95 % interval 4.0 to 23.0, n = 40" in results[1].metric_name


GSM8K = {
    "source": "lm_eval:gsm8k",
    "harness": "lm-eval",
    "version": "0.4.13",
    "task_version": 3,
    "num_fewshot": 5,
    "dataset": {"path": "openai/gsm8k", "config": "main", "split": "test"},
}


def _gsm8k(**changes: object) -> list[EvalResult]:
    cells = {
        mode: {
            "accuracy": value,
            "n": 40,
            "metrics": {
                "exact_match,strict-match": {"value": value, "ci": [value - 0.05, value + 0.05]},
                "exact_match,flexible-extract": {"value": value + 0.015625},
                "alias": {"value": "gsm8k"},
            },
        }
        for mode, value in (("think", 0.8125), ("no_think", 0.25))
    }
    facts = metadata(
        scores=ModelScores(model="m", tasks={"gsm8k": cells}),
        task_sources={"gsm8k": {**GSM8K, **changes}},
    )
    card = str(make_card(front_matter(facts), "x", before=None))
    assert faults_and_warnings(card) == ([], [])
    _, results = model_index_to_eval_results(ModelCard(card).data.to_dict()["model-index"])
    return results


def test_metrics_of_a_harness_keep_their_names_values_and_dataset() -> None:
    results = _gsm8k()
    assert [(r.task_name, r.metric_type, r.metric_value) for r in results] == [
        ("gsm8k (think)", "exact_match", 0.8125),
        ("gsm8k (think)", "exact_match", 0.828125),
        ("gsm8k (no_think)", "exact_match", 0.25),
        ("gsm8k (no_think)", "exact_match", 0.265625),
    ]
    first = results[0]
    assert (first.dataset_type, first.dataset_config, first.dataset_split) == (
        "openai/gsm8k",
        "think",
        "test",
    )
    assert first.dataset_args == {"config": "main", "num_few_shot": 5}
    assert first.metric_args["filter"] == "strict-match"
    assert first.source_name == "lm-evaluation-harness 0.4.13, task version 3"


def test_a_harness_task_over_local_files_names_no_dataset_of_the_hub() -> None:
    for dataset in ({"path": "json", "config": None}, {}):
        assert {result.dataset_type for result in _gsm8k(dataset=dataset)} == {"gsm8k"}
    assert _gsm8k(dataset={"path": "hellaswag"})[0].dataset_type == "hellaswag"


def test_a_published_data_set_is_named_by_its_id() -> None:
    dataset = {"path": "HuggingFaceH4/aime_2024", "config": "default", "split": "train"}
    sources = {"adding up": {"source": "hub:aime24 (/rows.jsonl)", "dataset": dataset}}
    found = front_matter(metadata(task_sources=sources)).to_dict()
    _, (first, _) = model_index_to_eval_results(found["model-index"])
    assert (first.dataset_type, first.dataset_split) == ("HuggingFaceH4/aime_2024", "train")
    assert (first.metric_type, first.metric_value) == ("accuracy", 80.0)


def test_several_answers_add_pass_at_k_and_the_majority() -> None:
    figure = {"value": 0.5, "ci": [0.25, 0.75]}
    cell = {"accuracy": 0.4, "n": 10, "samples": 4, "majority": figure}
    cell |= {"pass_at": {"1": figure, "4": {"value": 0.875, "ci": [0.5, 1.0]}}}
    scores = ModelScores(model="m", tasks={"sums": {"think": cell}})
    found = front_matter(metadata(scores=scores)).to_dict()
    _, results = model_index_to_eval_results(found["model-index"])
    assert [(result.metric_type, result.metric_value) for result in results] == [
        ("accuracy", 40.0),
        ("pass@4", 87.5),
        ("majority@4", 50.0),
    ]


def test_a_base_without_a_name_leaves_no_relation() -> None:
    found = front_matter(metadata(bases=(base(None),), scores=None)).to_dict()
    assert not {"base_model", "base_model_relation", "model-index"} & found.keys()


def test_relations_are_those_of_the_hubs_tree() -> None:
    assert relation_of([base()], {}, adapter=True) == "adapter"
    assert relation_of([base()], {}, adapter=False) == "finetune"
    assert relation_of([base("a/b"), base("c/d")], {}, adapter=False) == "merge"
    assert relation_of([base()], {"quantization_config": {"bits": 4}}, adapter=False) == "quantized"


def test_what_the_user_wrote_outlives_a_second_publication() -> None:
    first = str(make_card(front_matter(metadata()), "# tiny\n\nours", before=None))
    edited = first.replace(BEGIN, f"Words above.\n\n{BEGIN}") + "\n## My notes\n\nkeep `this`\n"
    edited = edited.replace("license: mit", "license: mit\nthumbnail: x.png")
    second = make_card(front_matter(metadata(license="apache-2.0")), "# tiny\n\nnew", before=edited)
    assert (
        second.text.index("Words above.") < second.text.index("new") < second.text.index("My notes")
    )
    assert "ours" not in second.text and "keep `this`" in second.text
    assert second.data.license == "apache-2.0" and second.data.thumbnail == "x.png"
    third = str(
        make_card(front_matter(metadata(license="apache-2.0")), "# tiny\n\nnew", before=str(second))
    )
    assert third == str(second), "publishing again changes nothing"


def test_a_card_of_someone_else_stays_below_ours() -> None:
    theirs = "---\ntags: [mine]\nlicense: gpl\n---\n# Old title\n\nold words\n"
    card = make_card(front_matter(metadata()), "# tiny", before=theirs)
    assert card.text.index(END) < card.text.index("# Old title")
    assert card.data.license == "mit" and {"mine", "dual-mode"} <= set(card.data.tags)


def test_figures_and_results_of_before_do_not_stay() -> None:
    before = str(make_card(front_matter(metadata()), "x", before=None))
    after = make_card(front_matter(metadata(scores=None, sources=())), "y", before=before)
    assert "model-index" not in after.data.to_dict() and "datasets" not in after.data.to_dict()


def test_a_front_matter_that_is_no_yaml_loses_only_itself() -> None:
    card = make_card(front_matter(metadata()), "x", before="---\na: [1\n---\n# Kept\n")
    assert "# Kept" in card.text and card.data.license == "mit"


def test_metadata_that_the_hub_would_not_understand_is_told() -> None:
    card = ModelCard(
        "---\nlicense: apache\nbase_model: base\ndatasets: [a/b, rows.jsonl]\nlanguage: English\n---\n"
    )
    assert list(metadata_faults(card)) == [
        "license: 'apache' isn't one that the hub knows",
        "base_model: 'base' isn't a hub id (owner/name)",
        "datasets: 'rows.jsonl' isn't a hub id (owner/name)",
        "language: 'English' isn't an ISO 639 code such as en",
        "base_model_relation: expected one of adapter, finetune, merge, quantized",
    ]
