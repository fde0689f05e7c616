"""A model's replies as training data: sampled, scored by rules that are exact, and paired best with worst."""

from dual_head.replies.pairs import best_with_worst
from dual_head.replies.rules import RULES, Rule

__all__ = ["RULES", "Rule", "best_with_worst"]
