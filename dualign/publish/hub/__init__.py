"""Requests to the Hub: metadata of repositories, their state, uploads."""

__all__ = ["metadata", "repository", "upload"]
