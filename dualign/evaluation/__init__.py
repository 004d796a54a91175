"""Tasks put to models in both modes, and the figures that come of it."""
