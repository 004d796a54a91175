"""The functions that the rows of checklist.py name."""
