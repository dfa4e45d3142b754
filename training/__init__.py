"""Everything that makes weights: data, samplers of depth, losses, optimizers, and the runs that put them together."""
