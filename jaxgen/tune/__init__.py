"""What one does to a trained model to make it one's own: adapters."""
