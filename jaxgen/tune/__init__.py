"""Tuning a trained model: adapters."""
