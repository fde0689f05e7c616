"""The vocabulary axis in chunks gives what plain full logits would, and never holds them."""

import copy
import dataclasses

import pytest
import torch
from models import HIDDEN, VOCAB, steered_lm, tiny_lm
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from dual_head.backbone.decoder import Backbone, BackboneShape
from dual_head.backbone.features import Features
from dual_head.data.collate import PairCollator
from dual_head.guides.reward_head import RewardHead, RewardHeadConfig
from dual_head.losses import Terms
from dual_head.losses.next_token import NextToken
from dual_head.methods import method
from dual_head.model.policy import ActiveGuide, combine, products
from dual_head.ops.pair_groups import group_order, groups_of
from dual_head.ops.token_scores import (
    LIVE_TENSORS,
    Head,
    Scored,
    Tokens,
    auto_budget,
    map_tokens,
    reduce_tokens,
    response_tokens,
    split_sides,
)
from dual_head.train.step import GuidedLoss

ROW_BYTES = VOCAB * 4 * LIVE_TENSORS  # what one token costs of the budget
SCALARS = frozenset({"policy_logps", "reward_logps", "base_logps", "kl"})
both_fusions = pytest.mark.parametrize("fusion", ["logits", "probabilities"])


def head_of(backbone, guide, fusion: str) -> Head:
    return Head(
        lambda hidden, states, wanted: products(
            backbone, [ActiveGuide(guide, states, 1.0)], hidden, wanted, fusion=fusion
        ),
        lambda said, wanted: combine([guide], said, wanted, fusion=fusion, upcast=True),
    )


def says(logits) -> Head:
    """A head whose distributions are known functions of the hidden state."""
    return Head(lambda hidden, _states, _wanted: {k: f(hidden) for k, f in logits.items()}, lambda said, _: said)


class Example:
    """Two pairs of random hidden states, an LM head and a guide with every weight random."""

    def __init__(self):
        torch.manual_seed(0)
        self.lm_head = torch.randn(VOCAB, HIDDEN) / 4
        config = RewardHeadConfig(num_heads=2, head_dim=4, rank=8, bias=True)
        self.guide = RewardHead(config, BackboneShape(HIDDEN, VOCAB, 2))
        for parameter in self.guide.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        self.hidden = torch.randn(4, 9, HIDDEN)
        self.input_ids = torch.randint(0, VOCAB, (4, 9))
        self.mask = torch.zeros(4, 9, dtype=torch.bool)
        for row, (start, end) in enumerate([(2, 9), (4, 6), (1, 5), (8, 9)]):
            self.mask[row, start:end] = True

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.lm_head.T

    def matrix(self) -> Tensor:
        return self.lm_head

    def head(self, fusion: str):
        """As a backbone with this lm_head and the guide at alpha = 1 would have it."""
        return head_of(self, self.guide, fusion)

    def scalars(
        self, *, needs=SCALARS, rows_at_a_time: int = 100, fusion: str = "logits", **options
    ) -> dict[str, Tensor]:
        states = self.guide.encode(Features(self.hidden), None)
        tokens = response_tokens(self.hidden, states, self.input_ids, self.mask)
        options = {"budget": rows_at_a_time * ROW_BYTES, **options}
        return reduce_tokens(tokens, self.head(fusion), needs, **options)

    def in_float64(self, fusion: str) -> dict[str, Tensor]:
        """The same scalars, the long way: all logits at all positions, then log_softmax."""
        hidden = self.hidden.double()
        states = self.guide.encode(Features(hidden), None)
        base = hidden @ self.lm_head.double().T
        logit_delta = self.guide.logit_delta(states, base)
        gate = states["gate_logit"].sigmoid().unsqueeze(-1)
        base_logps, reward_logps = base.log_softmax(-1), (base + logit_delta).log_softmax(-1)
        if fusion == "logits":
            policy_logps = (base + gate * logit_delta).log_softmax(-1)
        else:
            policy_logps = ((1 - gate) * base_logps.exp() + gate * reward_logps.exp()).log()
        kl = (policy_logps.exp() * (policy_logps - base_logps)).sum(-1)
        wide = {"base_logps": base_logps, "reward_logps": reward_logps, "policy_logps": policy_logps}
        at = self.mask[:, 1:]
        labels = self.input_ids[:, 1:, None]
        picked = {name: x[:, :-1].gather(-1, labels)[..., 0][at] for name, x in wide.items()}
        return {**picked, "kl": kl[:, :-1][at]}

    def gradients_of(self, scalars: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of an arbitrary loss of the scalars, with another weight for each."""
        self.guide.zero_grad()
        loss = sum((i + 1) * x.square().mean() for i, (_, x) in enumerate(sorted(scalars.items())))
        loss.backward()
        return {name: p.grad.clone() for name, p in self.guide.named_parameters()}


def assert_as_close_as(share: float, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        distance = (ours[name].double() - theirs[name].double()).norm() / theirs[name].double().norm()
        assert distance < share, name


# ---- the same as the long way ------------------------------------------------------------------------------


@both_fusions
def test_scalars_are_those_of_full_logits_in_float64(fusion):
    example, reference = Example(), Example()
    reference.guide.double()
    assert_as_close_as(1e-5, example.scalars(fusion=fusion), reference.in_float64(fusion))


@both_fusions
def test_gradients_are_those_of_plain_autograd_for_every_parameter(fusion):
    example, reference = Example(), Example()
    reference.guide.double()
    gradients = example.gradients_of(example.scalars(fusion=fusion, rows_at_a_time=3))
    assert_as_close_as(1e-5, gradients, reference.gradients_of(reference.in_float64(fusion)))
    assert len(gradients) == 8
    assert all(g.any() for g in gradients.values())


@both_fusions
@pytest.mark.parametrize("rows_at_a_time", [0, 1, 2, 5, 13, 14])
def test_the_size_of_a_chunk_changes_nothing(fusion, rows_at_a_time):
    example = Example()
    whole, parts = (example.scalars(fusion=fusion, rows_at_a_time=n) for n in (10**6, rows_at_a_time))
    assert_as_close_as(1e-5, parts, whole)
    assert_as_close_as(1e-5, example.gradients_of(parts), example.gradients_of(whole))


@both_fusions
def test_without_gradients_the_values_are_the_same(fusion):
    example = Example()
    with torch.no_grad():
        looked_at = example.scalars(fusion=fusion)
    assert_as_close_as(1e-6, looked_at, example.scalars(fusion=fusion))


def test_only_what_is_asked_for_is_computed():
    assert Example().scalars(needs=["kl", "gate_logit"]).keys() == {"kl"}
    assert Example().scalars(needs=["gate_logit"]) == {}


@pytest.mark.parametrize("name", sorted(SCALARS))
def test_a_measured_scalar_carries_no_gradient_and_keeps_its_value(name):
    example = Example()
    measured = example.scalars(measured=frozenset({name}))
    assert not measured[name].requires_grad
    assert all(measured[other].requires_grad for other in SCALARS - {name, "base_logps"})
    torch.testing.assert_close(measured[name], example.scalars()[name].detach())


# ---- shift and mask ----------------------------------------------------------------------------------------


def test_a_token_is_scored_by_the_position_before_it_and_prompts_by_none():
    """Hidden states are the logits themselves: position t of row r says log [1/2, 1/4, 1/4] rolled by r + t."""
    halves = torch.tensor([1 / 2, 1 / 4, 1 / 4]).log()
    hidden = torch.stack([torch.stack([halves.roll(r + t) for t in range(4)]) for r in range(2)])
    input_ids = torch.tensor([[0, 1, 1, 0], [2, 0, 2, 0]])
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
    tokens = response_tokens(hidden, {"at": torch.arange(8).view(2, 4)}, input_ids, mask)
    assert tokens.row.tolist() == [0, 0, 1, 1]
    assert tokens.labels.tolist() == [1, 1, 2, 0]
    assert tokens.states["at"].tolist() == [0, 1, 4 + 1, 4 + 2]
    scalars = reduce_tokens(
        tokens, says({"base": lambda h: h, "policy": lambda h: h}), ["policy_logps", "kl"], budget=1
    )
    # Row 0: 1 under rolled 0 is 1/4; 1 under rolled 1 is 1/2.  Row 1: 2 under rolled 2 is 1/2; 0 under rolled 3 is 1/2.
    assert scalars["policy_logps"].exp().tolist() == pytest.approx([1 / 4, 1 / 2, 1 / 2, 1 / 2])
    assert scalars["kl"].tolist() == pytest.approx([0, 0, 0, 0], abs=1e-6)


def test_kl_by_hand():
    """From [1/2, 1/2] to [3/4, 1/4]: 3/4 ln(3/2) + 1/4 ln(1/2) = 0.1308 nats."""
    tokens = Tokens(torch.zeros(1, 2), {}, torch.tensor([0]), torch.tensor([0]))
    to_three_quarters = torch.tensor([[3.0, 1.0]]).log()
    head = says({"base": lambda h: h, "policy": lambda _: to_three_quarters})
    scalars = reduce_tokens(tokens, head, ["kl"])
    assert scalars["kl"].item() == pytest.approx(0.75 * 0.405465 + 0.25 * -0.693147, abs=1e-5)


def test_a_first_token_has_nothing_before_it():
    """A response that begins the sequence loses its first token, which no position predicts."""
    tokens = response_tokens(torch.zeros(1, 3, 2), {}, torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool))
    assert tokens.labels.tolist() == [6, 7]


def test_no_tokens_give_empty_scalars():
    example = Example()
    example.mask.zero_()
    scalars = example.scalars()
    assert scalars.keys() == SCALARS
    assert all(x.shape == (0,) and x.dtype == torch.float32 for x in scalars.values())


# ---- nothing as wide as the vocabulary outlives a chunk ----------------------------------------------------


MULTIPLIES = (torch.ops.aten.mm.default, torch.ops.aten.mm.out)


class AsWideAsTheVocabulary(TorchDispatchMode):
    """Records the rows of every tensor whose last dimension is V, but for the heads' own weights, and its storage."""

    def __init__(self):
        super().__init__()
        self.rows: list[int] = []
        self.storages: list[StorageWeakRef] = []
        self.multiplied = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor) and x.dim() and x.shape[-1] == VOCAB and x.shape != (HIDDEN, VOCAB):
                self.rows.append(x.numel() // VOCAB)
                self.storages.append(StorageWeakRef(x.untyped_storage()))
                self.multiplied += x.numel() // VOCAB if func in MULTIPLIES else 0
        return out


RESPONSES = [[8, 9, 10, 2], [15, 2], [11, 12, 2], [16, 17, 2]]
TWO_PAIRS = PairCollator(0)(
    [
        {"prompt_ids": [5, 6, 7] * 5, "chosen_ids": RESPONSES[0], "rejected_ids": RESPONSES[2]},
        {"prompt_ids": [13, 14], "chosen_ids": RESPONSES[1], "rejected_ids": RESPONSES[3]},
    ]
)


def a_step(fusion: str, at_a_time: int) -> GuidedLoss:
    everything = method("dual_head").with_options({"fusion": fusion, "kl.weight": 1.0})
    step = GuidedLoss(steered_lm(fusion=fusion), everything, guide="dual_head", budget=at_a_time * ROW_BYTES)
    step.model.backbone.matrix()  # whether there is one is tried once
    return step


@both_fusions
@pytest.mark.parametrize("at_a_time", [1, 3, 7, 11, 12])
def test_training_sees_the_vocabulary_chunk_by_chunk_and_at_response_tokens_only(fusion, at_a_time):
    step = a_step(fusion, at_a_time)
    with AsWideAsTheVocabulary() as seen:
        loss = step(**TWO_PAIRS)["loss"]
        assert all(storage.expired() for storage in seen.storages)  # gradients were taken on the way
        loss.backward()
    # Pairs of 7 and 5 response tokens: whole where they fit, together where both do.
    assert max(seen.rows) == {11: 7}.get(at_a_time, at_a_time)


@both_fusions
def test_no_product_is_computed_twice_where_a_pair_fits_the_budget(fusion):
    response_tokens = sum(map(len, RESPONSES))
    for at_a_time, times in ((12, 1), (7, 1), (3, 2)):
        step = a_step(fusion, at_a_time)
        with AsWideAsTheVocabulary() as seen:
            step(**TWO_PAIRS)["loss"].backward()
        assert seen.multiplied == times * 2 * response_tokens  # the LM head and the reward head


def test_of_rejected_responses_nothing_is_computed_that_no_loss_reads():
    """As printed the next-token loss reads chosen ones alone: of rejected ones there is one product, not two."""
    step = GuidedLoss(steered_lm(), method("dual_head"), guide="dual_head")
    step.looking = False
    step.model.backbone.matrix()
    chosen, rejected = (sum(map(len, RESPONSES[i : i + 2])) for i in (0, 2))
    with AsWideAsTheVocabulary() as seen:
        loss = step(**TWO_PAIRS)["loss"]
    assert seen.multiplied == 2 * chosen + rejected
    step.looking = True
    with AsWideAsTheVocabulary() as seen:
        torch.testing.assert_close(step(**TWO_PAIRS)["loss"], loss)
    assert seen.multiplied == 2 * (chosen + rejected)  # divergence is looked at everywhere


def test_a_loss_that_reads_what_it_said_it_would_not_is_nan():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Careless(NextToken):
        def __call__(self, scored: Scored) -> Terms:
            return Terms(-sum(scored.means("policy_logps")))

    Careless.__module__ = NextToken.__module__  # losses are named by their file
    printed = method("dual_head")
    careless = dataclasses.replace(printed, objectives=(Careless(), *printed.objectives[1:]))
    step = GuidedLoss(steered_lm(), careless, guide="dual_head")
    step.looking = False
    assert step(**TWO_PAIRS)["loss"].isnan()


@pytest.mark.parametrize("counts", [[4, 3, 2, 2], [1, 1, 9, 9], [0, 2, 3, 0]])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_tokens_are_put_group_by_group_and_chosen_first(counts, size):
    row = torch.arange(4).repeat_interleave(torch.tensor(counts))
    groups = groups_of(counts, size, chosen_bytes=1, rejected_bytes=1)
    ordered = row[group_order(groups, row)].tolist()
    for group in groups:
        group_rows = ordered[group.start : group.stop]
        assert group_rows == sorted(group_rows, key=lambda r: (r % 2, r))
        assert sum(r % 2 == 0 for r in group_rows) == group.chosen
        assert {r // 2 for r in group_rows} <= set(range(group.first, group.first + group.pairs))


def test_pairs_share_a_group_as_far_as_what_their_tokens_hold_fits():
    """Chosen tokens of two logits, rejected of one: pairs hold 2 * 3 + 4 = 10, 2 * 1 + 1 = 3 and 2 * 2 + 6 = 10."""
    counts = [3, 4, 1, 1, 2, 6]
    by_budget = {9: [1, 1, 1], 12: [1, 1, 1], 13: [2, 1], 23: [3]}
    for budget, pairs in by_budget.items():
        groups = groups_of(counts, budget, chosen_bytes=2, rejected_bytes=1)
        assert [group.pairs for group in groups] == pairs
    assert [(group.start, group.stop, group.chosen) for group in groups] == [(0, 17, 6)]


def test_a_token_is_said_to_hold_the_products_made_of_it():
    """Eagerly a constant; compiled the policy's two, in their precision, the reward's one, and of no scalar none."""
    example, guide = Example(), RewardHead(RewardHeadConfig(num_heads=2, head_dim=4), BackboneShape(HIDDEN, VOCAB, 2))
    states = guide.encode(Features(example.hidden), None)
    tokens = response_tokens(example.hidden, states, example.input_ids, example.mask)
    eager, head = (dataclasses.replace(head_of(example, guide, "logits"), compiled=x) for x in (False, True))
    assert eager.bytes_held(tokens, {"policy_logps", "kl"}) == ROW_BYTES
    assert head.bytes_held(tokens, {"policy_logps", "reward_logps"}) == 2 * 4 * VOCAB
    assert head.bytes_held(tokens, {"reward_logps"}) == 4 * VOCAB
    assert head.bytes_held(tokens, {"gate_logit"}) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert head.bytes_held(tokens, {"reward_logps"}) == 2 * 2 * VOCAB


def test_what_exceeds_the_budget_is_cut_evenly_where_what_is_wanted_changes():
    """Four of eight tokens fit; of the first five two scalars are wanted, of the other three one."""
    head = says({"base": lambda h: h, "policy": lambda h: h})
    rows = []

    def products(hidden, states, wanted):
        rows.append(len(hidden))
        return head.products(hidden, states, wanted)

    counting = Head(products, head.combine, compiled=False)
    tokens = Tokens(torch.randn(8, VOCAB), {}, torch.arange(8), torch.zeros(8, dtype=torch.int64))
    whole = reduce_tokens(tokens, head, ["kl", "base_logps"], first={"kl": 5})
    parts = reduce_tokens(tokens, counting, ["kl", "base_logps"], first={"kl": 5}, budget=4 * ROW_BYTES)
    assert rows == [0, 0, 3, 2, 3]  # none of each kind is asked what it would hold
    for name, x in parts.items():
        assert torch.equal(x, whole[name])


def test_the_budget_grows_with_the_head():
    """Of a 7B: 7 x 32000 x 4096 bytes, 3584 tokens of two fp32 products; of a small model 128 MiB with what is kept."""
    assert auto_budget(32000, 4096) == 3584 * 2 * 4 * 32000
    assert auto_budget(VOCAB, HIDDEN) == 128 * 2**20
    assert auto_budget(VOCAB, HIDDEN, kept=2**24) == 112 * 2**20
    assert auto_budget(32000, 4096, kept=2**24) == auto_budget(32000, 4096)


def test_the_gradients_of_one_loss_are_taken_once():
    loss = a_step("logits", 12)(**TWO_PAIRS)["loss"]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="taken already"):
        loss.backward()


@pytest.mark.parametrize("at_a_time", [1, 12])
def test_a_part_of_a_loss_has_that_part_of_its_gradient(at_a_time):
    """Gradients are taken ahead, for a whole loss; accumulation and scaling ask for a part of it."""
    whole, part = a_step("logits", at_a_time), a_step("logits", at_a_time)
    whole(**TWO_PAIRS)["loss"].backward()
    (part(**TWO_PAIRS)["loss"] / 4).backward()
    for one, other in zip(whole.model.guides.parameters(), part.model.guides.parameters(), strict=True):
        assert one.grad.abs().max() > 0
        torch.testing.assert_close(other.grad, one.grad / 4)


# ---- extremes ----------------------------------------------------------------------------------------------


@both_fusions
@pytest.mark.parametrize("spread", [1.0, 1e4])
@pytest.mark.parametrize("gate_logit", [-100.0, 100.0])
def test_bf16_stays_finite_for_closed_and_open_gates_and_huge_hidden_states(fusion, spread, gate_logit):
    torch.manual_seed(0)
    backbone = Backbone(tiny_lm("llama").to(torch.bfloat16))
    guide = RewardHead(RewardHeadConfig(init_std=0.3), backbone.shape).to(torch.bfloat16)
    hidden = (spread * torch.randn(6, HIDDEN)).to(torch.bfloat16)
    s = torch.full((6,), gate_logit, dtype=torch.bfloat16, requires_grad=True)

    head = head_of(backbone, guide, fusion)
    tokens = Tokens(hidden, {"hidden": hidden, "gate_logit": s}, torch.arange(6), torch.zeros(6, dtype=torch.int64))
    scalars = reduce_tokens(tokens, head, SCALARS | {"moved", "delta_norm"})
    sum(x.sum() for x in scalars.values() if x.requires_grad).backward()
    assert all(x.isfinite().all() and x.dtype == torch.float32 for x in scalars.values())
    assert s.grad.isfinite().all()
    assert guide.difference.up.weight.grad.isfinite().all()


# ---- Scored ------------------------------------------------------------------------------------------------

# Pairs 0 and 1; rows 0, 2 are chosen and 1, 3 rejected; row 2 has no token.
SCORED = Scored({"x": torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])}, torch.tensor([0, 0, 1, 3, 3]), pairs=2)


def test_sums_means_and_lengths_are_per_response():
    assert [x.tolist() for x in SCORED.sums("x")] == [[1 + 2, 0], [4, 8 + 16]]
    assert [x.tolist() for x in SCORED.means("x")] == [[3 / 2, 0], [4, 24 / 2]]
    assert SCORED.lengths().tolist() == [2, 1, 0, 2]
    assert SCORED["x"] is SCORED.values["x"]


def test_sums_of_half_precision_are_taken_in_fp32():
    many = Scored({"x": torch.ones(1000, dtype=torch.bfloat16)}, torch.zeros(1000, dtype=torch.int64), pairs=1)
    assert many.sums("x")[0].tolist() == [1000.0]


def test_an_example_is_not_changed_by_being_scored():
    example = Example()
    before = copy.deepcopy((example.hidden, example.input_ids, example.mask))
    example.gradients_of(example.scalars())
    assert all(
        torch.equal(a, b) for a, b in zip(before, (example.hidden, example.input_ids, example.mask), strict=True)
    )


def test_split_sides_gives_back_chosen_and_rejected():
    chosen, rejected = split_sides(torch.tensor([2, 3, 3, 1]))
    assert (chosen.tolist(), rejected.tolist()) == ([2, 3], [3, 1])


@pytest.mark.parametrize("shape", [(6,), (6, 5), (2, 3, 4)])
def test_split_sides_splits_rows_and_nothing_else(shape):
    per_row = torch.arange(float(torch.tensor(shape).prod())).reshape(shape)
    chosen, rejected = split_sides(per_row)
    assert torch.equal(torch.stack([chosen, rejected], 1).flatten(0, 1), per_row)
    assert chosen.shape == rejected.shape


def test_a_state_that_is_the_hidden_state_itself_stays_one_tensor():
    hidden = torch.arange(6.0).view(1, 3, 2)
    last, states = map_tokens(lambda x: x[:, -1:], hidden, {"g": {"hidden": hidden, "gate_logit": hidden[..., 0]}})
    assert states["g"]["hidden"] is last
    assert (last.tolist(), states["g"]["gate_logit"].tolist()) == ([[[4, 5]]], [[4]])
