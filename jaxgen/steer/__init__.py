"""Steering: particles, search and trees around a frozen sampler, driven by plain rewards.

A reward is a function x [B, ...] -> [B], of any scale; it needs no gradient. Log-weights are
float32.
"""
