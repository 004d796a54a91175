"""What a card says of an adapter's settings, and of how an adapter with whole tensors is served."""

from dualign.publish.card.body import Usage, render_usage
from dualign.publish.card.training import _adapter, hyper_parameters


def test_settings_of_the_adapter_are_told() -> None:
    lora = {"r": 4, "lora_alpha": 8, "init_lora_weights": "pissa", "bias": "none"}
    lora |= {"rank_pattern": {"q_proj": 2}, "layers_to_transform": [0, 1]}
    assert _adapter({"lora": lora | {"loraplus_lr_ratio": 4.0}}) == (
        "LoRA r 4, alpha 8, start pissa, rank_pattern q_proj: 2, layers_to_transform 0 1, LoRA+ ratio 4"
    )
    assert _adapter({"lora": {"r": 4, "lora_alpha": 8}}) == "LoRA r 4, alpha 8"


def test_an_adapter_with_whole_tensors_is_folded_for_servers() -> None:
    facts = {"repo_id": "acme/dual", "base": "acme/base", "revision": "main", "rank": 8}
    plain, whole = (
        render_usage(Usage(**facts, contents="adapter", whole_tensors=whole))
        for whole in (False, True)
    )
    assert "vllm serve" in plain and "dualign adapter fold" not in plain
    assert "dualign adapter fold adapter model --model base" in whole and "vllm serve" not in whole
    folded = render_usage(Usage(**facts, contents="weights", whole_tensors=True))
    assert "vllm serve acme/dual" in folded


def test_new_tokens_are_told() -> None:
    words = ["<ticket>", {"text": "Zyklotron", "description": "particle accelerator"}]
    record = {"kind": "sft", "config": {"train": {}, "add_tokens": words}}
    assert "all weights; new tokens <ticket>, Zyklotron" in hyper_parameters(record)


def test_stretched_positions_are_told() -> None:
    config = {"train": {}, "context": {"length": 16384, "rope": "yarn"}}
    assert "; 16,384 positions by yarn; " in hyper_parameters({"kind": "sft", "config": config})
