"""Tuning a trained model: adapters, contrasts with a frozen copy, one layer rewritten."""
