"""A raw row of a file or of the hub -> a conversation that agrees with itself."""
