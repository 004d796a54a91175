"""Requests to the Hub: metadata of repositories, their state, uploads."""

__all__ = ["collections", "metadata", "repository", "upload"]
