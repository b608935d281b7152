"""What a network may be told of an example in the place of its label."""
