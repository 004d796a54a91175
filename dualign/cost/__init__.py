"""What a recipe costs before it runs: memory, operations, time; and `dualign plan`, which shows it."""
