"""The command line: the only place that knows the stages, and it imports them when they are needed."""
