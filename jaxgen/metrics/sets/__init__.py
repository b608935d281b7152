"""What is scored: sets of images or features that anyone made."""
