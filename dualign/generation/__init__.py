"""Text from a model in one mode, and what was thought and answered in it."""
