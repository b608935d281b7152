"""Models that leave: as a folder with a card, or as a program that needs JAX alone."""
