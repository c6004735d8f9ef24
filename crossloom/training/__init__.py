"""Training: recipes, the loop, engines, checkpoints."""
