"""What is minimised: a noised batch and a sum of terms."""
