"""Formulas of scalars and of their derivatives, against plain autograd in float64; compiled and not."""

import functools
import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dual_head.ops import compiled, vocab_kernels
from dual_head.ops.compiled import fast_exp
from dual_head.ops.scalars import SCALARS, Scalar, View
from dual_head.ops.vocab_kernels import reduce_products

TOKENS, WORDS = 5, 37
TRAINED = tuple(sorted(name for name, scalar in SCALARS.items() if scalar.trainable))
LABELS = torch.tensor([3, 0, 36, 3, 12])


def products(dtype=torch.float64) -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors = {
        "base": torch.randn(TOKENS, WORDS),
        "own": torch.randn(TOKENS, WORDS),
        "head": torch.randn(TOKENS, WORDS),
    }
    tensors["weight"] = torch.rand(TOKENS, 1)
    return {name: x.to(dtype).requires_grad_(name != "base") for name, x in tensors.items()}


def combine(said: dict[str, Tensor], wanted: frozenset[str]) -> dict[str, Tensor]:
    base = said["base"]
    made = {
        "base": lambda: base,
        "reward": lambda: base + said["own"],
        "policy": lambda: base + said["weight"] * said["own"] + 0.5 * said["head"],
        "second": lambda: base + said["head"],
        "delta": lambda: said["weight"] * said["own"],
    }
    return {name: make() for name, make in made.items() if name in wanted}


def the_long_way(said: dict[str, Tensor]) -> dict[str, Tensor]:
    z = combine(said, frozenset({"base", "reward", "policy", "second", "delta"}))
    logps = {name: x.log_softmax(-1) for name, x in z.items()}
    picked = {f"{name}_logps": logps[name][range(TOKENS), LABELS] for name in ("base", "reward", "policy")}
    divergence = {
        name: (logps[of].exp() * (logps[of] - logps["base"])).sum(-1)
        for name, of in (("kl", "policy"), ("second_kl", "second"))
    }
    moved = (logps["policy"].exp() - logps["base"].exp()).abs().sum(-1) / 2
    return {**picked, **divergence, "moved": moved, "delta_norm": z["delta"].square().sum(-1)}


def gradients(scalars: dict[str, Tensor], said: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a loss in which every token of every scalar counts differently."""
    weights = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    loss = sum((i + 1) * (weights.to(x.dtype) * x).sum() for i, (_, x) in enumerate(sorted(scalars.items())))
    moving = [name for name, x in said.items() if x.requires_grad]
    grads = torch.autograd.grad(loss, [said[name] for name in moving], allow_unused=True, materialize_grads=True)
    return dict(zip(moving, grads, strict=True))


def reduced(said, wanted=TRAINED, **options) -> dict[str, Tensor]:
    return dict(zip(wanted, reduce_products(said, LABELS, combine, wanted, **options), strict=True))


@pytest.mark.parametrize("wanted", [TRAINED, *((name,) for name in TRAINED)], ids="+".join)
def test_scalars_and_gradients_are_those_of_plain_autograd(wanted):
    inputs, reference = products(), products()
    expected = {name: x for name, x in the_long_way(reference).items() if name in wanted}
    scalars = reduced(inputs, wanted)
    torch.testing.assert_close(scalars, expected)
    if wanted != ("base_logps",):
        torch.testing.assert_close(gradients(scalars, inputs), gradients(expected, reference))


def test_what_is_measured_only_is_measured_right_and_trains_nothing():
    inputs = products()
    scalars = reduced(inputs, ("moved", "policy_logps"))
    torch.testing.assert_close(scalars["moved"], the_long_way(inputs)["moved"].detach())
    assert not scalars["moved"].requires_grad
    assert scalars["policy_logps"].requires_grad
    assert not reduced(inputs, ("kl",), measured=frozenset({"kl"}))["kl"].requires_grad


@pytest.mark.heavy
def test_compiled_loops_give_the_same_and_write_gradients_over_their_products():
    inputs, reference = products(torch.float32), products(torch.float32)
    wide = {name: x.clone() for name, x in inputs.items()}  # as matrix products are: no leaves
    scalars, plain = reduced(wide, compiled=True), reduced(reference)
    torch.testing.assert_close(scalars, plain)
    torch.testing.assert_close(gradients(scalars, inputs), gradients(plain, reference))
    assert torch.equal(wide["base"], inputs["base"])
    assert not torch.equal(wide["own"], inputs["own"])


FIRST = {"kl": 3, "policy_logps": 3, "delta_norm": 2}  # of the five tokens


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_wanted_of_the_first_tokens_alone_is_as_long_and_the_same(compiled):
    """Products that nothing else is made of are then as short, too."""
    dtype = torch.float32 if compiled else torch.float64
    whole, first = products(dtype), products(dtype)
    for name in ("weight", "head"):
        first[name] = first[name].detach()[:3].requires_grad_()
    scalars_read = ("delta_norm", "kl", "policy_logps", "reward_logps")
    expected = {name: x[: FIRST.get(name, TOKENS)] for name, x in the_long_way(whole).items() if name in scalars_read}
    inputs = {name: x.clone() for name, x in first.items()}
    scalars = reduced(inputs, scalars_read, rows=FIRST, compiled=compiled)
    torch.testing.assert_close(scalars, expected)
    inputs, reference = (
        torch.autograd.grad(sum((i + 1) * x.sum() for i, (_, x) in enumerate(sorted(values.items()))), moving)
        for values, moving in ((scalars, list(first.values())[1:]), (expected, list(whole.values())[1:]))
    )
    for some, plain in zip(inputs, reference, strict=True):
        torch.testing.assert_close(some, plain[: len(some)])
        assert not plain[len(some) :].any()


def test_a_product_read_by_what_is_only_measured_gets_no_gradient():
    inputs = products()
    scalars = reduced(inputs, ("moved", "reward_logps"), rows={"reward_logps": 2})
    scalars["reward_logps"].sum().backward()
    assert inputs["own"].grad[:2].any()
    assert not inputs["own"].grad[2:].any()


def test_thefast_exponential_is_right_to_a_rounding_wherever_a_loop_asks_for_it():
    x = torch.cat([torch.linspace(-87, 87, 100_001), torch.tensor([0.0, -1e-30, 1e-30])])
    exact = x.double().exp()
    assert ((fast_exp(x).double() - exact) / exact).abs().max() < 2e-7
    far = fast_exp(torch.tensor([-88.0, -1e30, -math.inf]))
    assert ((far >= 0) & (far < 2e-38)).all()
    assert fast_exp(torch.tensor([math.nan])).isnan().all()
    assert torch.equal(fast_exp(x.double()), exact)


def test_without_a_compiler_training_goes_on_and_says_so(monkeypatch):
    def no_compiler(_fn, **_options):
        def run(*_args):
            raise torch._dynamo.exc.TorchDynamoException("no C++ compiler")

        return run

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(vocab_kernels, "_compiled", functools.cache(vocab_kernels._compiled.__wrapped__))
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler.*Install a C"):
        scalars = reduced(products(), compiled=True)
    torch.testing.assert_close(scalars, reduced(products()))


# ---- when loops are compiled, and where they are kept -------------------------------------------------------


@pytest.mark.parametrize(
    ("vocab_size", "tokens", "worth"),
    [(49152, 41_000, True), (49152, 40_000, False), (8191, 10**9, False), (8192, math.inf, True)],
)
def test_loops_are_compiled_for_large_vocabularies_and_long_runs(vocab_size, tokens, worth):
    assert compiled.worth_compiling(vocab_size, tokens) is worth


def test_compiled_loops_are_kept_in_the_users_cache_unless_torch_is_told_where(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    assert compiled.compiled_folder() == tmp_path / "mine"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", compiled.default_cache_dir())  # as torch sets it, when imported
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled.compiled_folder() == tmp_path / "dual-head" / "kernels"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compiled.compiled_folder() == tmp_path / "home" / ".cache" / "dual-head" / "kernels"


def test_a_folder_that_cannot_be_made_stops_no_run(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", compiled.default_cache_dir())
    for cache, kept in (
        ("file", compiled.default_cache_dir()),
        ("new", str(tmp_path / "new" / "dual-head" / "kernels")),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        compiled.use_compiled_folder()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == kept
    assert Path(kept).is_dir()


# ---- a scalar of one's own ----------------------------------------------------------------------------------


class Entropy(Scalar):
    """-sum_v p log p, in nats."""

    def value(self, at: View) -> Tensor:
        return at.p.lse[:, 0] - at.p.mean(at.p.logits)

    def derivative(self, at: View) -> tuple:
        return -(at.p.logp() + at.s), None


class Renyi(Scalar):
    """log(sum_v p^2 / b), the divergence of order 2: twice as far from p as from b."""

    against_base = True

    def value(self, at: View) -> Tensor:
        return at.p.mean((at.p.logp() - at.b.logp()).exp()).log()

    def derivative(self, at: View) -> tuple:
        return 2 * ((at.p.logp() - at.b.logp() - at.s).exp() - 1), None


NEW = {"entropy": Entropy("policy"), "renyi": Renyi("policy")}


@pytest.mark.parametrize("in_place", [False, True])
def test_a_new_scalar_is_one_entry_with_its_value_and_derivative(monkeypatch, in_place):
    """It is trained beside the others of its distribution, whose derivatives join it in one pass."""
    for name, scalar in NEW.items():
        monkeypatch.setitem(SCALARS, name, scalar)
    loops = (vocab_kernels._values, vocab_kernels._gradients, vocab_kernels._gradients_in_place)
    monkeypatch.setattr(vocab_kernels, "_compiled", lambda: loops)  # as the compiler's, less the wait for it
    inputs, reference = products(), products()
    z = combine(reference, frozenset({"policy", "base"}))
    logp, base = z["policy"].log_softmax(-1), z["base"].log_softmax(-1)
    expected = {
        "entropy": -(logp.exp() * logp).sum(-1),
        "renyi": (2 * logp - base).logsumexp(-1),
        "kl": the_long_way(reference)["kl"],
    }
    wide = {name: x.clone() for name, x in inputs.items()}
    scalars = reduced(wide, tuple(expected), compiled=in_place)
    torch.testing.assert_close(scalars, expected)
    torch.testing.assert_close(gradients(scalars, inputs), gradients(expected, reference))
    assert torch.equal(wide["own"], inputs["own"]) is not in_place
