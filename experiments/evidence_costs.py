"""What every trained method costs beside its backbone, in turns in one process: the efficiency table of the evidence.

It knows systems and clocks, and nothing of what they reply.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from evidence_answers import base_of
from evidence_worlds import World

from dual_head import AlignedModel
from dual_head.evaluate.metrics.efficiency import measure_efficiency
from dual_head.model.generate import prompt_ids
from dual_head.model.pretrained import load_tokenizer

BACKBONE = "the backbone"
NEW_TOKENS, BATCHES, ROUNDS = 32, (1, 8), 5


def measured(world: World, places: Mapping[str, Path], *, new_tokens: int = NEW_TOKENS, rounds: int = ROUNDS) -> Any:
    """Costs of the backbone and of the guides in `places`, at alpha = 1, after one prompt of the world.

    Only on an otherwise idle machine are times worth anything.
    """
    tokenizer = load_tokenizer(world.backbone)
    prompt = max((one.prompt for one in world.asked("dev", 20)), key=lambda prompt: len(str(prompt)))
    (ids,) = prompt_ids([prompt], tokenizer)
    systems: list[Any] = [(BACKBONE, base_of(world), tokenizer, None)]
    for name, place in places.items():
        systems.append((name, AlignedModel.from_pretrained(str(place), dtype=world.dtype).eval(), tokenizer, 1.0))
    rows = measure_efficiency(systems, [ids] * len(systems), new_tokens=new_tokens, batch_sizes=BATCHES, rounds=rounds)
    return {"threads": torch.get_num_threads(), "rows": [asdict(row) for row in rows]}
