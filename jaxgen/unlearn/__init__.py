"""Making a trained model forget."""
