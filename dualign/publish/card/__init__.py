"""The model card: its front matter, and the text made from card.md.jinja."""
