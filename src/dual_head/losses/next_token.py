"""Next-token loss of the fused policy on chosen responses."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dual_head.losses.base import Objective, Terms
from dual_head.ops.token_scores import Scored


@dataclass(frozen=True, kw_only=True)
class NextToken(Objective):
    """L = -E_(x, y+) [ mean_t log pi(y+_t | x, y+_<t) ] in nats per token.

    over: "tokens" averages over each response's tokens; "sequence" sums them, as the Dual-Head paper prints.
    """

    over: Literal["tokens", "sequence"] = "tokens"
    reads_rejected: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """The policy's log-probabilities."""
        return frozenset({"policy_logps"})

    def __call__(self, scored: Scored) -> Terms:
        """Negative log-likelihood of each chosen response, [B]."""
        chosen, _ = scored.means("policy_logps") if self.over == "tokens" else scored.sums("policy_logps")
        return Terms(-chosen)


OBJECTIVE = NextToken
