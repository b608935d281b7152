"""Families of generative models; each gives the training loop a `Method`."""
