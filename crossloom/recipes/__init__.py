"""Recipes: one short module for each family of published systems, and the demo."""
