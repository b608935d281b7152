"""Training: the loop, optimizers, averages, sharding, checkpoints, logging, interruption."""
