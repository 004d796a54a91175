"""Code around TRL's trainers that SFT and preference training share."""

__all__ = [
    "adapter",
    "arguments",
    "attention",
    "best",
    "callbacks",
    "config",
    "finite_steps",
    "isolation",
    "parallelism",
    "pausing",
    "per_group_metrics",
    "policy",
    "positions",
    "precision",
    "preflight",
    "rows",
    "sequence_parallel",
    "streaming",
    "tiled_mlp",
    "trainer",
]
