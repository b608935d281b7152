"""Guidance: pure functions from denoisers to a denoiser; a file an idea.

A guidance function asks for denoisers by the names of its parameters: `cond` (the label's),
`uncond` (the null label's), `weak` (a worse model's, for the label) and `guided` (the result of
the section before it, at first `cond`); and for `path`, `grid` (the solver's times), `labels` and
`by_label` (labels -> their denoiser), or for all `branches`. Further names come from the sampler's
`branches`: classifiers, encoders, other models. docs/guidance.md has an example of each.
"""
