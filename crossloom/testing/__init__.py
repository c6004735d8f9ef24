"""Helpers for tests, of crossloom and of plugins: tiny recipes, several processes, contracts."""

from crossloom.testing.modality import check_modality

__all__ = ["check_modality"]
