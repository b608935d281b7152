"""What experiments share: toys, exact networks, checks."""
