"""How many examples a property is tried on, fast and slow."""

from hypothesis import HealthCheck, settings

FEW = settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=2_000)
