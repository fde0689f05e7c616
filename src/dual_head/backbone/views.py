"""Views of a model: other containers around the very same layers and weights.

    model   LlamaModel -> [ DecoderLayer -> q_proj ]
    view    LlamaModel'-> [ DecoderLayer'-> q_proj ]        q_proj is one object; what replaces it in one stays there

It knows modules, and neither guides nor adapters.
"""

import copy
from typing import Any

from transformers import PreTrainedModel


def shared_view(lm: PreTrainedModel) -> PreTrainedModel:
    """Return a model with containers of its own and the very same layers and weights inside.

    Adapters put into the view replace layers of the view only; whatever moves or casts the original moves
    the view, since there is nothing in the view to move.
    """
    memo: dict[int, Any] = {id(m): m for m in lm.modules() if not any(True for _ in m.children())}
    memo |= {id(parameter): parameter for parameter in lm.parameters()}
    memo |= {id(m._buffers): m._buffers for m in lm.modules()}  # by the name: a cast puts another tensor there
    return copy.deepcopy(lm, memo)
