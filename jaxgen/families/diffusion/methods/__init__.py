"""Methods of the family, from a path, a prediction, terms and a network."""
