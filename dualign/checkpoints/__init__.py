"""Weights on disk: read tensor by tensor, adapters folded in or added up, written in shards."""
