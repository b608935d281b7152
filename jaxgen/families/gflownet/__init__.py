"""GFlowNets: samplers of objects that are built step by step, in proportion to a reward."""

from jaxgen.families.gflownet.method import fl_gflownet, gflownet

__all__ = ["fl_gflownet", "gflownet"]
