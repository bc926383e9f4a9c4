"""Runnable examples that ship with the repository."""
