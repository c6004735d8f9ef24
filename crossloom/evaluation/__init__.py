"""Evaluation: tasks that fine-tune heads, predict per example and score once."""
