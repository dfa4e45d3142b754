"""Everything that makes weights: data, samplers of depth, losses, optimizers, and the module that Lightning trains."""
