"""Objectives: which view of the example is shown, what is aimed at, and how it is scored."""
