"""What processes send each other, and the seconds of a step."""

from dataclasses import replace

import pytest

from dualign.cost.cards import cluster
from dualign.cost.communication import sequence_traffic, traffic
from dualign.cost.lora_shape import LoraShape
from dualign.cost.memory import estimate
from dualign.cost.step_time import StepTime, step_time
from dualign.cost.training_shape import TrainingShape
from tests.cost.test_memory import ADAPTER, FULL, PARAMETERS, SMOLLM3

MIXED = replace(FULL, master_weights=True, world_size=8)
TWICE = replace(MIXED, gradient_accumulation=2)
SEVEN = 7 / 8


@pytest.mark.parametrize(
    ("training", "beside", "after"),
    [
        # An all-reduce of float32 gradients, in the last micro-batch alone.
        (TWICE, 2 * SEVEN * 4 * PARAMETERS, 0),
        # A reduce-scatter of bfloat16 gradients in each micro-batch, then the new weights.
        (replace(TWICE, sharding="zero2"), 2 * SEVEN * 2 * PARAMETERS, SEVEN * 2 * PARAMETERS),
        # The weights twice and the gradients, in each micro-batch.
        (replace(TWICE, sharding="zero3"), 2 * SEVEN * 6 * PARAMETERS, 0),
        # The gradients in the last micro-batch alone.
        (replace(TWICE, sharding="fsdp2"), SEVEN * (2 * 4 + 2) * PARAMETERS, 0),
        (replace(MIXED, world_size=1), 0, 0),
    ],
    ids=["ddp", "zero2", "zero3", "fsdp2", "one"],
)
def test_bytes_of_a_step(training: TrainingShape, beside: float, after: float) -> None:
    sent = traffic(SMOLLM3, training)
    assert (sent.beside, sent.after) == pytest.approx((beside, after))
    assert bool(sent.formula) == (beside > 0)


def test_an_adapter_sends_its_own_gradients_and_under_zero3_all_weights() -> None:
    lora = replace(FULL, lora=LoraShape(r=16), world_size=8)
    assert traffic(SMOLLM3, lora).beside == pytest.approx(2 * SEVEN * 4 * ADAPTER)
    sharded = replace(lora, sharding="zero3", master_weights=True)
    assert traffic(SMOLLM3, sharded).beside > SEVEN * 4 * PARAMETERS


def test_a_row_over_processes_sends_queries_keys_values_and_outputs() -> None:
    # 3 passes x 36 layers x 65,536 / 8 tokens x (2 x 2048 + 2 x 512) x 2 bytes x 7/8
    expected = 3 * 36 * 8192 * 5120 * 2 * SEVEN
    assert sequence_traffic(SMOLLM3, 65536, 8) == pytest.approx(expected)
    assert sequence_traffic(SMOLLM3, 65536, 1) == 0


def timed(training: TrainingShape, on: str, arithmetic: str = "bfloat16") -> StepTime:
    tokens = training.tokens * training.gradient_accumulation
    return step_time(SMOLLM3, training, cluster(on), tokens=tokens, arithmetic=arithmetic)


def test_sending_counts_where_it_takes_longer_than_computing() -> None:
    sharded = replace(MIXED, sharding="zero3")
    linked, slow = (
        timed(sharded, "8xH100"),
        timed(replace(sharded, world_size=4, max_tokens=1024), "4x1x4090"),
    )
    assert linked.seconds == linked.computing + linked.optimizer
    assert linked.waiting == pytest.approx(0)
    assert slow.seconds == slow.beside + slow.optimizer
    # 3/4 x 6 bytes x parameters, through 10 Gbit/s: longer than the layers take
    hops = (
        3 * 36 * 3 * 5e-6
    )  # all-gathers twice and a reduce-scatter of each layer, 3 hops of a ring
    assert slow.beside == pytest.approx(3 / 4 * 6 * PARAMETERS / (0.8 * 1.25e9) + hops)
    assert 0.5 < slow.waiting < 1


def test_float32_takes_the_rate_without_tensor_cores() -> None:
    halves, floats = timed(FULL, "H100"), timed(FULL, "H100", "float32")
    assert floats.layers / halves.layers == pytest.approx(0.439 * 989 / (0.803 * 67), rel=0.01)


def test_attention_has_a_rate_of_its_own() -> None:
    """36 layers x 2 x 2048 x 4096 tokens x 4 passes, with the backward pass's repeated scores."""
    operations = 36 * 2 * 2048 * 4096 * 4 * 4096 * 3.5 / 3
    assert timed(FULL, "H100").attention == pytest.approx(operations / (0.33 * 989e12))


def test_fsdp2_holds_whole_gradients_while_they_accumulate_and_ddp_buckets() -> None:
    sharded = replace(MIXED, sharding="fsdp2")
    once, more = (
        estimate(SMOLLM3, replace(sharded, gradient_accumulation=steps)).gradients
        for steps in (1, 2)
    )
    assert more - once == pytest.approx(2 * PARAMETERS, abs=1)
    single, ddp = (
        estimate(SMOLLM3, replace(MIXED, world_size=world)).gradients for world in (1, 8)
    )
    assert ddp == 2 * single


def test_processes_that_share_a_row_wait_for_what_they_exchange() -> None:
    row = replace(FULL, max_tokens=65536, sharding="zero3", world_size=8, master_weights=True)
    alone, shared = (
        step_time(
            SMOLLM3,
            row,
            cluster("8xH100"),
            tokens=65536 // parts,
            arithmetic="bfloat16",
            parts=parts,
        )
        for parts in (1, 8)
    )
    assert shared.attention == pytest.approx(alone.attention / 8)
    assert shared.after == pytest.approx(sequence_traffic(SMOLLM3, 65536, 8) / (0.8 * 450e9))


def test_tiles_compute_the_mlp_once_more() -> None:
    tiled = replace(FULL, tiled_mlp=True, max_tokens=65536)
    more = timed(tiled, "H100").layers / timed(replace(tiled, tiled_mlp=False), "H100").layers
    # 3 x 2048 x 11008 of 78.1 million weights of a layer, and the head's 263 million
    assert more == pytest.approx(1 + 2 * 36 * 67.6e6 / (8 * (36 * 78.1e6 + 262.7e6)), rel=0.001)
