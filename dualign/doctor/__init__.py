"""Proves on the user's own data, template and saved directory that training and serving agree."""
