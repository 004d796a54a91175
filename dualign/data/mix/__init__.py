"""Which rows are trained on: draws, amounts, shares, what is screened out, and the account."""
