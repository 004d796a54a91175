"""The rank of a layer by an adapter's patterns."""

from dualign.checkpoints.patterns import configured, largest_rank, published_rank


def test_the_first_pattern_that_fits_the_end_of_a_path_counts() -> None:
    lora = {"r": 4, "rank_pattern": {r"layers\.0\..*": 2, "q_proj": 8}}
    assert configured(lora, "r", "model.layers.0.self_attn.q_proj") == 2
    assert configured(lora, "r", "model.layers.1.self_attn.q_proj") == 8
    assert configured(lora, "r", "model.layers.1.self_attn.my_q_proj") == 4
    assert configured({"r": 4, "rank_pattern": None}, "r", "q_proj") == 4


def test_a_start_that_is_taken_away_doubles_the_rank() -> None:
    lora = {"r": 4, "rank_pattern": {"q_proj": 8}, "init_lora_weights": "pissa_niter_2"}
    assert published_rank(lora, "a.q_proj") == 16
    assert published_rank(lora, "a.k_proj") == 8
    assert largest_rank(lora) == 16
    assert largest_rank({"r": 4}) == 4
