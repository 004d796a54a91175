"""Text -> tokens and labels -> packed rows -> batches."""
