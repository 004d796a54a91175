"""`dualign plan --on` in the terminal: a table of ways for each stage that trains, and what was assumed."""

from rich.console import Console
from rich.table import Table

from dualign.cost.answering import hours
from dualign.cost.cards import Cluster, cluster
from dualign.cost.failures import hours_to_failure
from dualign.cost.on_cards import StageOnCards, WayCost, stage_on_cards
from dualign.cost.step_time import LAYER_START
from dualign.engine import require_runnable, statuses
from dualign.errors import ConfigError
from dualign.recipe import Recipe
from dualign.terminal import wide_console

_MANY = 64
_TIGHT = 0.9


def show_plan_on(
    recipe: Recipe, on: str, *, price: float | None = None, console: Console | None = None
) -> None:
    """Print memory, time, tokens per second and price of each stage on cards that needn't be here.

    Args:
        on: cards, such as 8xH100 and 2x8xH100.
        price: of a card for an hour.

    Raises:
        ConfigError: unknown cards, or a launcher for another number of them.
    """
    console = console or wide_console()
    there = cluster(on)
    all_statuses = statuses(recipe, remember=False)
    stages = [stage_on_cards(recipe, status, all_statuses, there) for status in all_statuses]
    console.print(f"{recipe.name} on {there}", highlight=False)
    for note in there.notes:
        console.print(f"note: {note}", highlight=False)
    for stage in stages:
        console.rule(f"{stage.name} ({stage.kind})", align="left")
        _show_stage(stage, there, price, console)
    _show_total(stages, price, console)
    console.rule("assumed", align="left")
    for line in _assumptions(there):
        console.print(f"- {line}", highlight=False, soft_wrap=True)
    try:
        require_runnable(recipe, all_statuses)
    except ConfigError as error:
        console.print(f"on this machine a run would be refused: {error}", highlight=False)


def _assumptions(there: Cluster) -> list[str]:
    """Return what the figures rest on, for these cards."""
    card = there.card
    lines = [
        f"nothing was measured: figures follow from the data sheet of the {card.name} ({card.source})",
        f"layers reach {card.efficiency:.0%} of its {card.half_tflops:,g} TFLOP/s: "
        f"{card.matmul_share:.0%} in products, the rest waits for memory at {card.bandwidth_gbs:,g} GB/s; "
        + (
            f"attention reaches {card.attention_share:.0%}"
            if card.attention_share
            else "attention is taken to be as fast"
        ),
        f"memory: {card.memory_gb:g} x 10^9 bytes; what a card has more is left to fragments; 1 GB for CUDA; "
        f"tight is above {_TIGHT:.0%}: measured peaks were up to 15 % away",
        f"batches are full; a CPU starts the kernels of a layer in {LAYER_START * 1e3:g} ms",
        "loading, tokenizing, validation, evaluation while training and saving aren't in the time",
        "every process needs the same memory; where weights are sharded, the first one also gathers "
        "them whole in the machine's memory when it saves",
    ]
    if there.cards > 1:
        rate = there.link_rate(there.cards) / 1e9
        way = card.link
        if there.nodes > 1:
            way += f", and {card.network_gbit:g} Gbit/s a card between nodes"
        lines.append(
            f"cards are linked by {way}: {rate:,.0f} GB/s in a ring, 80 % of the slower; sending hides "
            "behind computing as far as it is shorter, and waits of its own aren't counted"
        )
    if there.cards >= _MANY:
        lines.append(
            f"{there.cards:,} cards fail once in {hours(3600 * hours_to_failure(there.cards))}, as those of "
            "Llama 3 405B did; docs/scale.md says how often to save"
        )
    lines.append("docs/scale.md holds such figures against published ones: within 25 % for most")
    return lines


def _show_stage(stage: StageOnCards, there: Cluster, price: float | None, console: Console) -> None:
    if stage.details:
        console.print(stage.details, highlight=False, soft_wrap=True)
    if stage.ways:
        steps = f"{stage.steps:,} steps" if stage.steps else "steps unknown"
        console.print(f"{steps}, about {stage.tokens_per_step:,} tokens in each", highlight=False)
        console.print(_table(stage, there, price))
        lines = "\n  ".join(stage.ways[0].memory.lines())
        console.print(f"memory of each card, as it is:\n  {lines}", highlight=False, soft_wrap=True)
    for note in stage.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


def _table(stage: StageOnCards, there: Cluster, price: float | None) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("way", overflow="fold")
    known = stage.steps is not None
    unit = "price" if known else "price of 10^9 tokens"
    names = ["GB a card", "fits", "s a step", "tokens/s", "time" if known else "10^9 tokens"]
    for name in [*names, *([unit] if price is not None else [])]:
        table.add_column(name, justify="right")
    for number, cost in enumerate(stage.ways):
        table.add_row(*_row(cost, there, price, first=number == 0))
    return table


def _row(cost: WayCost, there: Cluster, price: float | None, *, first: bool) -> list[str]:
    way = "as it is" if first else ", ".join(cost.way.changes)
    if cost.way.other_result:
        way += f" (another result: {cost.way.other_result})"
    seconds = cost.seconds if cost.seconds is not None else 1e9 / cost.tokens_per_second
    cells = [
        way,
        f"{cost.memory.total / 1e9:.1f} of {there.card.memory_gb:g}",
        _fits(cost, there),
        f"{cost.step.seconds:.3g}",
        f"{cost.tokens_per_second:,.0f}",
        hours(seconds),
    ]
    if price is not None:
        known = cost.price(price)
        cells.append(f"{cost.price_of_tokens(price) if known is None else known:,.2f}")
    return cells


def _fits(cost: WayCost, there: Cluster) -> str:
    if cost.memory.total > _TIGHT * there.card.memory:
        return "tight" if cost.fits else "no"
    return "yes"


def _show_total(stages: list[StageOnCards], price: float | None, console: Console) -> None:
    """Print the sum of the stages that train, if all are known."""
    costs = [stage.ways[0] for stage in stages if stage.ways]
    times = [cost.seconds for cost in costs if cost.seconds is not None]
    if len(costs) < 2 or len(times) < len(costs):
        return
    line = f"training of all stages, as they are: {hours(sum(times))}"
    prices = [known for cost in costs if (known := cost.price(price or 0)) is not None]
    console.print(line + (f", {sum(prices):,.2f}" if price is not None else ""), highlight=False)
