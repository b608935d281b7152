"""Other people's weights in, ours out: pure functions between dicts of arrays and parameters."""
