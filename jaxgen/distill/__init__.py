"""From a teacher to a student that is faster."""
