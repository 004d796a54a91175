"""SFT with LoRA, then APO with LoRA: the reference, the published adapter and the merged weights are exact."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.prepare import DataRequest, prepare_pairs
from dualign.errors import CheckpointError
from dualign.models.loading import load_checkpoint
from dualign.models.pairs import PairCollator, label_values
from dualign.models.source import resolve_model
from dualign.models.tokenizer import load_tokenizer
from dualign.preference.config import PreferenceStage
from dualign.preference.train import build_trainer
from dualign.preference.train import run as run_preference
from dualign.rundir import Outcome
from dualign.sft.config import SFTStage
from dualign.sft.train import run as run_sft
from dualign.training.adapter import AdapterConfig
from tests.training.conftest import save_model

TRAIN = {
    "max_steps": 6,
    "learning_rate": 2e-2,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "gradient_checkpointing": False,
}


def sft(model: Path, rows: Path, work: Path, **changes: object) -> Path:
    work.mkdir()
    data = DataConfig(sources=(SourceConfig(path=str(rows / "train.jsonl")),), max_tokens=128)
    settings = {"lora": AdapterConfig(r=4), "train": TRAIN} | changes
    run_sft(SFTStage(name="sft", model=str(model), data=data, **settings), work, seed=1)
    return work


def preference(model: Path, rows: Path, **changes: object) -> PreferenceStage:
    data = DataConfig(
        sources=(SourceConfig(path=str(rows / "pairs.jsonl")),), max_tokens=128, packing="none"
    )
    settings = {"lora": AdapterConfig(r=2, lora_alpha=8), "train": TRAIN} | changes
    return PreferenceStage(name="apo", model=str(model), data=data, **settings)


def logits(folder: Path, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    model = load_checkpoint(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(
            **tokenizer("<|im_start|>user\nAdd 3, 4, 5.<|im_end|>\n", return_tensors="pt")
        ).logits


@pytest.fixture(scope="module", params=["llama", "smollm3"])
def trained(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerFast,
    rows: Path,
) -> Iterator[tuple[Path, Path]]:
    """A base with tied embeddings, and an SFT adapter on it."""
    folder = tmp_path_factory.mktemp(request.param)
    base = save_model(folder / "base", tokenizer, kind=request.param)
    yield base, sft(base, rows, folder / "sft")


def test_the_reference_is_the_sft_model(
    trained: tuple[Path, Path], rows: Path, tmp_path: Path
) -> None:
    """Log-probabilities of the reference = those of the SFT adapter on the base, loaded by PEFT alone."""
    base, adapter = trained
    stage = preference(adapter, rows)
    start = resolve_model(stage.model)
    tokenizer, template = load_tokenizer(start, stage.template, stage.template_kwargs)
    data = prepare_pairs(DataRequest(stage.data, tokenizer, template, seed=1))
    trainer = build_trainer(stage, start, data, tokenizer, tmp_path, seed=1)
    trainer.train()  # so that the policy has left its start
    pairs = [data.train[i] for i in range(6)]
    batch = trainer.data_collator(pairs)
    ours = torch.stack(trainer.compute_ref_log_probs(trainer.model, batch), dim=1)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    rows_alone = PairCollator(layout="padded")(pairs)
    labels = rows_alone["shift_labels"]
    with torch.no_grad():
        logps = model(
            input_ids=rows_alone["input_ids"], attention_mask=rows_alone["attention_mask"]
        ).logits.log_softmax(-1)
        policy = trainer.compute_loss(trainer.model.eval(), batch, return_outputs=True)[1]
    chosen = logps.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = (chosen * (labels != -100)).sum(-1).reshape(-1, 2)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
    moved = label_values(policy) - chosen[labels != -100]
    assert moved.abs().max() > 1e-2, "the policy has moved, the reference has not"


@pytest.fixture(scope="module")
def apo(
    trained: tuple[Path, Path], rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome]:
    """APO on the SFT adapter: the run directory and what the stage returned."""
    folder = tmp_path_factory.mktemp("apo")
    return folder, run_preference(preference(trained[1], rows), folder, seed=1)


def test_the_parent_stays_as_it_was(trained: tuple[Path, Path], apo: tuple[Path, Outcome]) -> None:
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (trained[1], apo[0])
    )
    scaling = 32 / 4
    for name, factor in before.items():
        part = after[name][:4] if "lora_A" in name else after[name][:, :4]
        torch.testing.assert_close(
            part, factor if "lora_A" in name else factor * scaling, rtol=1e-6, atol=1e-7
        )


def test_the_published_adapter_is_one_of_both_ranks(
    trained: tuple[Path, Path], apo: tuple[Path, Outcome]
) -> None:
    folder, outcome = apo
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == 4 + 2
    assert Path(config["base_model_name_or_path"]) == trained[0]
    assert outcome.checks["reload_max_logit_difference"] <= 1e-4


@pytest.mark.parametrize(
    "lora",
    [AdapterConfig(r=4), AdapterConfig(r=4, use_rslora=True), AdapterConfig(r=4, use_dora=True)],
    ids=["lora", "rslora", "dora"],
)
def test_merged_weights_equal_the_live_model(
    trained: tuple[Path, Path], rows: Path, tmp_path: Path, lora: AdapterConfig
) -> None:
    """The stage compares by itself, and the figure is what a user gets by loading the folder."""
    base, adapter = trained
    merged = sft(base, rows, tmp_path / "merged", lora=lora, save="merged")
    if lora != AdapterConfig(r=4):  # as which the adapter was trained
        adapter = sft(base, rows, tmp_path / "adapter", lora=lora)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    difference = (logits(merged, tokenizer) - logits(adapter, tokenizer)).abs().max()
    assert difference <= 1e-4
    assert not (merged / "adapter_config.json").exists()
    assert (merged / "adapter" / "adapter_model.safetensors").exists()


def test_apo_on_both_adapters_merged_equals_the_adapter(
    trained: tuple[Path, Path], apo: tuple[Path, Outcome], rows: Path, tmp_path: Path
) -> None:
    run_preference(preference(trained[1], rows, save="merged"), tmp_path, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(apo[0])
    assert (logits(apo[0], tokenizer) - logits(tmp_path, tokenizer)).abs().max() <= 1e-4


def test_a_dora_parent_is_refused_with_the_way_out(
    trained: tuple[Path, Path], rows: Path, tmp_path: Path
) -> None:
    base, _ = trained
    parent = sft(base, rows, tmp_path / "dora", lora=AdapterConfig(r=4, use_dora=True))
    with pytest.raises(CheckpointError, match="set save: merged in the stage that trained it"):
        run_preference(preference(parent, rows), tmp_path, seed=1)


def test_full_fine_tuning_of_an_adapter_is_refused(
    trained: tuple[Path, Path], rows: Path, tmp_path: Path
) -> None:
    _, adapter = trained
    with pytest.raises(CheckpointError, match="full fine-tuning starts from weights"):
        run_preference(preference(adapter, rows, lora=None), tmp_path, seed=1)


def test_ends_agree_between_tokenizer_config_and_generation_config(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    folder = sft(tiny, rows, tmp_path / "full", lora=None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert "/no_think" in tokenizer.chat_template
