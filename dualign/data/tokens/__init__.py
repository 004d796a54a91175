"""Text -> tokens and labels -> packed rows -> batches."""

__all__ = ["collate", "encoders", "encoding", "labels", "packing", "shards"]
