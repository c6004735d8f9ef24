"""Helpers for tests, of crossloom and of plugins: tiny recipes, several processes, contracts."""
