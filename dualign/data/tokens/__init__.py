"""Text -> tokens and labels -> packed rows -> batches."""

__all__ = ["collate", "encoding", "labels", "packing"]
