"""The figures of docs/scale.md are those of the functions in dualign/cost."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from dualign.cost.answering import answer_time
from dualign.cost.cards import Cluster, cluster
from dualign.cost.communication import sequence_traffic, traffic
from dualign.cost.failures import best_interval, checkpoint_bytes, hours_to_failure, lost_share
from dualign.cost.lora_shape import LoraShape
from dualign.cost.memory import estimate
from dualign.cost.model_shape import ModelShape
from dualign.cost.step_time import StepTime, step_time
from dualign.cost.training_shape import TrainingShape
from dualign.generation.estimate import Demand
from tests.cost.test_memory import FULL, SMOLLM3

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
ENGINES = {"DDP": None, "ZeRO-2": "zero2", "ZeRO-3": "zero3", "FSDP2": "fsdp2"}
MIXED = replace(FULL, master_weights=True)


def mpt(hidden: int, layers: int, heads: int) -> ModelShape:
    """MosaicML's MPT as a gated model of as many parameters: its MLP has two matrices, 4 x as wide."""
    return ModelShape(
        model_type="llama",
        hidden=hidden,
        layers=layers,
        intermediate=round(8 * hidden / 3),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocab=50368,
        tied=True,
    )


def llama(hidden: int, layers: int, intermediate: int, heads: int, *, tied: bool) -> ModelShape:
    return ModelShape(
        model_type="llama",
        hidden=hidden,
        layers=layers,
        intermediate=intermediate,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        vocab=128256,
        tied=tied,
    )


MODELS = {
    "MPT-3B": mpt(2560, 32, 20),
    "MPT-7B": mpt(4096, 32, 32),
    "MPT-13B": mpt(5120, 40, 40),
    "Llama-3.1-8B": llama(4096, 32, 14336, 32, tied=False),
    "Llama-3.2-3B": llama(3072, 28, 8192, 24, tied=True),
    "SmolLM3-3B": SMOLLM3,
}


def rows_of(heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def number(text: str) -> float:
    return float(text.replace(",", ""))


@pytest.mark.parametrize("cells", rows_of("Speed"), ids=lambda cells: " ".join(cells[:3]))
def test_speed_against_published_figures(cells: list[str]) -> None:
    model, on, row, recomputed, batch, published, planned, ratio, _ = cells
    rows, steps = map(int, batch.split(" x "))
    there, tokens = cluster(on), int(number(row))
    training = replace(
        MIXED,
        micro_batch=rows,
        max_tokens=tokens,
        gradient_accumulation=steps,
        gradient_checkpointing=recomputed == "yes",
        sharding="fsdp2",
        world_size=there.cards,
    )
    own = rows * tokens * steps
    step = step_time(MODELS[model], training, there, tokens=own, arithmetic="bfloat16")
    speed = own / step.seconds
    assert planned == f"{speed:,.0f}"
    assert ratio == f"{speed / number(published):.2f}"


def test_most_published_speeds_are_within_25_percent_and_the_others_are_explained() -> None:
    ratios = [float(cells[7]) for cells in rows_of("Speed")]
    near = [ratio for ratio in ratios if 0.75 <= ratio <= 1.25]
    assert len(near) >= 0.7 * len(ratios)
    assert f"{len(near)} of {len(ratios)} are within 25 %" in PAGE


@pytest.mark.parametrize("cells", rows_of("Memory"), ids=lambda cells: " ".join(cells[:2]))
def test_memory_against_published_figures(cells: list[str]) -> None:
    model, method, row, recomputed, published, planned, ratio, _ = cells
    rank = re.search(r"r (\d+)", method)
    training = TrainingShape(
        micro_batch=2,
        max_tokens=int(number(row)),
        dtype="bfloat16",
        device="cuda",
        masked=False,
        attention="flash_attention_2",
        gradient_checkpointing=recomputed == "yes",
        lora=LoraShape(r=int(rank[1])) if rank else None,
        quantization="nf4" if method.startswith("QLoRA") else None,
    )
    need = estimate(MODELS[model], training)
    size = (need.total - need.framework) / 2**30  # as torch counts
    assert (planned, ratio) == (f"{size:.1f}", f"{size / number(published):.2f}")
    assert 0.85 < size / number(published) < 1.16


def step(engine: str, on: str, *, tokens: int = 4096) -> tuple[TrainingShape, StepTime]:
    there = cluster(on)
    sharding = ENGINES[engine]
    training = replace(MIXED, max_tokens=tokens, sharding=sharding, world_size=there.cards)  # type: ignore[arg-type]
    return training, step_time(SMOLLM3, training, there, tokens=tokens, arithmetic="bfloat16")


@pytest.mark.parametrize("cells", rows_of("Weights and gradients"), ids=lambda cells: cells[0])
def test_what_engines_send_and_hold(cells: list[str]) -> None:
    engine, gigabytes, *sending, eight, thousand = cells
    training, _ = step(engine, "8xH100")
    sent = traffic(SMOLLM3, training)
    assert gigabytes == f"{(sent.beside + sent.after) / 1e9:.1f}"
    for text, on in zip(sending, ("8xH100", "8x8xH100", "125x8xH100"), strict=True):
        _, time = step(engine, on)
        assert text == f"{time.beside + time.after:.2f}"
    for text, on in ((eight, "8xH100"), (thousand, "125x8xH100")):
        assert text == f"{estimate(SMOLLM3, step(engine, on)[0]).total / 1e9:.1f}"


@pytest.mark.parametrize("cells", rows_of("The batch"), ids=lambda cells: cells[0])
def test_the_sft_stage_from_one_card_to_1024(cells: list[str]) -> None:
    on, parts_text, steps_text, memory, seconds, speed, share = cells
    there, parts, steps = cluster(on), int(parts_text), int(steps_text)
    training = replace(
        MIXED,
        max_tokens=65536,
        sharding="zero3" if there.cards > 1 else None,
        world_size=there.cards,
        gradient_accumulation=steps,
    )
    assert there.cards // parts * steps == 128  # rows of a step
    own = 65536 // parts * steps
    time = step_time(SMOLLM3, training, there, tokens=own, arithmetic="bfloat16", parts=parts)
    whole = 128 * 65536 / time.seconds
    need = estimate(SMOLLM3, replace(training, max_tokens=65536 // parts)).total
    assert (memory, seconds) == (f"{need / 1e9:.0f}", f"{time.seconds:,.1f}")
    assert (speed, share) == (f"{whole:,.0f}", f"{time.waiting:.0%}")


def sentences() -> list[str]:
    """Return the sentences of the page that have figures, with those of the functions."""
    need = estimate(SMOLLM3, MIXED)
    _, alone = step("DDP", "H100")
    exchanged = sequence_traffic(SMOLLM3, 65536, 8)
    link = cluster("8xH100").link_rate(8)
    checkpoint = checkpoint_bytes(SMOLLM3)
    saving = checkpoint / 2e9
    interval = best_interval(saving, 1000)
    lost = lost_share(interval, saving, 1000, restart_seconds=600)
    demand = Demand(requests=2000, prompt_tokens=2000 * 500, answer_tokens=2000 * 8192)
    card = cluster("H100").card
    hours = {
        engine: answer_time(SMOLLM3, demand, card, batch_tokens=32768, backend=engine).seconds
        / 3600
        for engine in ("transformers", "vllm")
    }
    rate = card.rate("bfloat16")
    slower = replace(card, bandwidth_gbs=2400)
    titan = replace(
        MIXED,
        micro_batch=2,
        max_tokens=8192,
        gradient_checkpointing=False,
        sharding="fsdp2",
        world_size=8,
    )
    there = Cluster(card=slower, per_node=8)
    eight_b = MODELS["Llama-3.1-8B"]
    compiled = step_time(eight_b, titan, there, tokens=16384, arithmetic="bfloat16")
    speed = 16384 / compiled.seconds
    seldom = lost_share(36_000, saving, 1000, restart_seconds=600)
    _, zero = step("ZeRO-3", "8xH100")
    _, far = step("ZeRO-3", "125x8xH100")
    return [
        f"layers reach {card.efficiency:.0%} of an H100",
        f"18 x {SMOLLM3.parameters / 1e9:.3f} x 10^9 = {18 * SMOLLM3.parameters / 1e9:.1f} GB",
        f"the estimate says {need.total / 1e9:.1f} GB",
        f"computing takes {alone.computing:.2f} s",
        f"{rate / 1e12:.0f} TFLOP/s",
        f"{zero.beside:.2f} s at 8 cards, {far.beside:.2f} s at 1,000",
        f"{exchanged / 1e9:.1f} GB, {exchanged / link * 1e3:.0f} ms",
        f"14 x 3.075 x 10^9 = {checkpoint / 1e9:.0f} GB",
        f"{saving:.0f} s at 2 GB/s",
        f"{hours_to_failure(1000):.0f} hours at 1,000 cards",
        f"sqrt(2 x {saving:.0f} x {3600 * hours_to_failure(1000):,.0f}) = {interval:,.0f} s, "
        f"{interval / 60:.0f} minutes",
        f"{lost:.1%} of the time; saving every 10 hours loses {seldom:.0%}",
        f"one in {1000 * hours_to_failure(1000):,.0f} card-hours",
        f"{hours_to_failure(8):,.0f} hours at 8 cards",
        f"layers reach {slower.efficiency:.0%} in place of {card.efficiency:.0%}, and {speed:,.0f} tokens "
        f"are planned: {speed / 5762 - 1:.0%} above their run, {speed / 6667 - 1:.0%} above their compiled one",
        f"{hours['transformers']:.0f} hours with transformers, {hours['vllm']:.1f} with vLLM",
    ]


@pytest.mark.parametrize("sentence", sentences())
def test_examples(sentence: str) -> None:
    assert sentence in PAGE
