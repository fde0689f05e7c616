"""Options as dataclasses, and the extensions that bring their own: guides, methods, losses, judges, benchmarks."""

from dual_head.options.extensions import Extensions, discover
from dual_head.options.fields import Options, option, require_bounds, require_effect
from dual_head.options.values import build, fit

__all__ = ["Extensions", "Options", "build", "discover", "fit", "option", "require_bounds", "require_effect"]
