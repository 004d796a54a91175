"""From a raw row to a packed batch: the path that every training stage uses, and the only one."""
