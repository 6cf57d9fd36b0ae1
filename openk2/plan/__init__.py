"""What a model costs, counted from its config alone: parameters, FLOPs, cache. No torch."""

from openk2.plan.cache import CachePlan, plan_cache
from openk2.plan.flops import FlopsPlan, plan_flops
from openk2.plan.parameters import ParameterPlan, Part, plan_parameters

__all__ = ["CachePlan", "FlopsPlan", "ParameterPlan", "Part", "plan_cache", "plan_flops", "plan_parameters"]
