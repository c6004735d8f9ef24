"""Models: one Transformer whose layers are a plan over named streams."""
