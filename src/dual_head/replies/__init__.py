"""A model's replies as training data: sampled, scored by rules that are exact, and paired best with worst."""

from dual_head.replies.pairs import best_with_worst
from dual_head.replies.rules import RULES, Rule
from dual_head.replies.sample import sample_replies

__all__ = ["RULES", "Rule", "best_with_worst", "sample_replies"]
