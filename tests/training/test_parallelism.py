"""What processes that share a row can't train is refused before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import GptOssConfig, LlamaConfig, PreTrainedConfig, Qwen3MoeConfig

from dualign.attention.support import unshareable
from dualign.cost.stage_shape import rows_per_step
from dualign.data.config import DataConfig, SourceConfig
from dualign.preference.config import PreferenceStage
from dualign.sft.config import SFTStage
from dualign.training.parallelism import of_config, parallelism, parallelism_issues
from tests.attention.test_function import SHAPE

SHIPPED = Path(__file__).parents[2] / "recipes" / "accelerate" / "ulysses.yaml"
THREE_GROUPS = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3}
DATA: dict[str, Any] = {
    "data": DataConfig(sources=(SourceConfig(path="rows.jsonl"),), packing="none")
}


def launcher(folder: Path, **sizes: Any) -> str:
    """The file that ships, with other sizes."""
    config = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    config |= {name: sizes.pop(name) for name in tuple(sizes) if name in config}
    config["parallelism_config"] |= {f"parallelism_config_{key}": n for key, n in sizes.items()}
    path = folder / "launch.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(path)


def refusals(stage: Any) -> dict[str, str]:
    return dict(parallelism_issues(stage))


def sft(launch: str, **keys: Any) -> SFTStage:
    train = {"per_device_train_batch_size": 1, **keys.pop("train", {})}
    return SFTStage(name="sft", model="model", launch=launch, train=train, **DATA, **keys)


def test_the_file_that_ships_is_taken_and_says_how_many_rows_a_step_has() -> None:
    spread = parallelism(str(SHIPPED))
    assert (spread.processes, spread.sp_size, spread.replicas) == (8, 4, 2)
    stage = sft(str(SHIPPED), train={"gradient_accumulation_steps": 3})
    assert not refusals(stage)
    assert rows_per_step(stage, spread.replicas) == 6


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"cp_size": 2, "sp_size": 1, "dp_replicate_size": 4}, "cp_size 2: torch's context"),
        ({"tp_size": 2, "sp_size": 1}, "tp_size 2"),
        ({"distributed_type": "FSDP"}, "needs distributed_type: DEEPSPEED, found FSDP"),
        ({"num_processes": 6}, "6 processes aren't sp_size 4 x dp_replicate_size 2"),
        ({"dp_replicate_size": 1}, "parallelism_config_dp_replicate_size: 2"),
        ({"sp_size": "four"}, "sizes of parallelism_config are numbers"),
        ({"deepspeed_config": {"zero_stage": 0}}, "zero_stage 1, 2 or 3, found 0"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_refused(
    sizes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert message in refusals(sft(launcher(tmp_path, **sizes)))["launch"]


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"attn_implementation": "sdpa"}, "attn_implementation"),
        ({"train": {"per_device_train_batch_size": 2}}, "train.per_device_train_batch_size"),
        ({"train": {"loss_type": "dft"}}, "train.loss_type"),
        ({"train": {"neftune_noise_alpha": 5}}, "train.neftune_noise_alpha"),
        ({"train": {"torch_compile": True}}, "train.torch_compile"),
        (
            {"train": {"average_tokens_across_devices": False}},
            "train.average_tokens_across_devices",
        ),
        (
            {"train": {"train_sampling_strategy": "batch_rebalance"}},
            "train.train_sampling_strategy",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_need_whole_rows_are_refused_by_name(keys: dict[str, Any], key: str) -> None:
    assert list(refusals(sft(str(SHIPPED), **keys))) == [key]


def test_what_preference_needs_whole_rows_for_is_refused() -> None:
    common = {"name": "apo", "model": "model", "launch": str(SHIPPED), **DATA}
    train = {"per_device_train_batch_size": 1}
    whole = PreferenceStage(**common, train=train)
    assert "reference: cached" in refusals(whole)["reference"]
    assert not refusals(PreferenceStage(**common, train=train, reference="cached"))
    assert not refusals(PreferenceStage(**common, reference="cached", batch_tokens=64))
    rated = PreferenceStage(**common, train=train | {"loss_type": "kto"}, reference="cached")
    assert "answers without partners" in refusals(rated)["train.loss_type"]


def test_a_launcher_without_sizes_is_what_it_was() -> None:
    assert of_config({"num_processes": 4, "distributed_type": "MULTI_GPU"}).replicas == 4


@pytest.mark.parametrize(
    ("config", "parts", "reason"),
    [
        (LlamaConfig(**SHAPE), 2, None),
        (LlamaConfig(**SHAPE), 4, None),  # heads of keys that processes have in common
        (LlamaConfig(**SHAPE), 3, "its 4 heads aren't a multiple of 3"),
        (LlamaConfig(**SHAPE | THREE_GROUPS), 2, "neither is a multiple"),
        (LlamaConfig(**SHAPE, attention_dropout=0.1), 2, "can't be kept apart: it has dropout"),
        (
            GptOssConfig(**SHAPE, sliding_window=4, num_local_experts=3, num_experts_per_tok=2),
            2,
            "a sink for each head",
        ),
        (
            LlamaConfig(
                **SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
            ),
            2,
            "dynamic positions follow the longest row",
        ),
        (
            Qwen3MoeConfig(**SHAPE, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2),
            2,
            "router_aux_loss_coef: 0",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_models_whose_rows_cannot_be_shared(
    config: PreTrainedConfig, parts: int, reason: str | None
) -> None:
    found = unshareable(config, parts)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize(
    ("file", "changes", "works"),
    [
        ("fsdp2", {}, True),
        ("fsdp2", {"fsdp_state_dict_type": None}, True),  # accelerate's default
        ("fsdp2", {"fsdp_state_dict_type": "FULL_STATE_DICT"}, False),
        ("fsdp2", {"fsdp_version": 1}, False),
        ("zero3", {}, False),
    ],
)
def test_checkpoints_are_written_in_the_background_by_fsdp2_alone(
    tmp_path: Path, file: str, changes: dict[str, Any], works: bool
) -> None:
    config = yaml.safe_load(SHIPPED.with_name(f"{file}.yaml").read_text(encoding="utf-8"))
    config["fsdp_config"] = {**config.get("fsdp_config", {}), **changes}
    path = tmp_path / "launch.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    reasons = refusals(sft(str(path), async_checkpoints=True))
    assert ("only FSDP2's sharded" in reasons.get("async_checkpoints", "")) == (not works)
    assert not refusals(sft(str(path)))


def test_checkpoints_of_one_process_are_not_written_in_the_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = SFTStage(name="sft", model="model", async_checkpoints=True, **DATA)
    assert "async_checkpoints" in refusals(stage)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert not refusals(stage)


@pytest.mark.parametrize(
    ("checkpoint", "works"),
    [
        ({"writer": {"type": "PYTHON", "decoupled": True}}, False),
        ({"writer": {"type": "PYTHON"}}, True),
        ({"use_node_local_storage": True}, True),
    ],
)
def test_writers_that_nobody_hears_of_are_refused(
    tmp_path: Path, checkpoint: dict[str, Any], works: bool
) -> None:
    """DeepSpeed's decoupled writer is done when the next step is, and a checkpoint has its mark before."""
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"checkpoint": checkpoint}))
    path = tmp_path / "launch.yaml"
    config = {"distributed_type": "DEEPSPEED", "num_processes": 2}
    config |= {"deepspeed_config": {"deepspeed_config_file": str(file)}}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert ("decoupled" in refusals(sft(str(path))).get("launch", "")) == (not works)
