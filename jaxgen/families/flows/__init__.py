"""Normalising flows with exact likelihood: TarFlow and Glow by one method, `flow`."""

from jaxgen.families.flows.method import flow

__all__ = ["flow"]
