"""Scores, a short file each: features -> statistics -> value."""
