"""A conversation -> the text that the model sees, and the parts of it that it must produce."""
