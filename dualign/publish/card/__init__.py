"""The model card: its front matter, and the text made from card.md.jinja."""

__all__ = ["body", "copies", "dataset", "exported", "front_matter", "pack", "results"]
