"""Everything that is asked of the hub or sent to it."""
