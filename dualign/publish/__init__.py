"""From a finished run to a repository on the hub that works for the next person."""
