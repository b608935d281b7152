"""Encoders and rewards by name: networks and functions that nobody trains."""
