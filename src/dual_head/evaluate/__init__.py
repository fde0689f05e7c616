"""Evaluation: questions to many systems, judges and metrics, an honest report; see `types` for the nouns."""

from dual_head.evaluate.types import Answer, Comparison, Decoding, Judge, Question, Replies, Verdict

__all__ = ["Answer", "Comparison", "Decoding", "Judge", "Question", "Replies", "Verdict"]
