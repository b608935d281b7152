"""A checked config as objects, other runs that it names, and a trained model."""
