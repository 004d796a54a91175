"""Which rows are trained on: sampling, screening, amounts, shares, and their statistics."""

__all__ = ["decontamination", "mixture", "row_table", "screening", "selection", "switching"]
