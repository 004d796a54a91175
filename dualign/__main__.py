"""`python -m dualign`, which is how accelerate launch starts a stage."""

from dualign.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
