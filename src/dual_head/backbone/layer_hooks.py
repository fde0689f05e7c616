"""What the layers of a decoder give, read and changed while it runs, through hooks on exactly those layers.

Two threads may run one decoder, as a server does that generates and scores: each has hooks, and meets no other's.

It knows modules, and neither architectures nor what is read or added.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from dual_head.errors import DualHeadError


def layer_stack(decoder: nn.Module, count: int) -> nn.ModuleList:
    """Find the stack of decoder layers: the list of as many modules as the config counts layers.

    decoder: of text, since an encoder of images beside it may have as many.
    """
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise DualHeadError(f"{type(decoder).__name__} shows no list of {count} layers to read hidden states from.")


@contextmanager
def kept(stack: nn.ModuleList, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Keep {i: [B, T, d]}: 0 is what the first layer of the stack reads, i what layer i - 1 gives."""
    states: dict[int, Tensor] = {}
    with ExitStack() as hooks:
        for i in layers:
            if i:
                hook = stack[i - 1].register_forward_hook(_of_this_thread(_keep_output(states, i)))
            else:
                hook = stack[0].register_forward_pre_hook(_of_this_thread(_keep_input(states)), with_kwargs=True)
            hooks.callback(hook.remove)
        yield states


@contextmanager
def shifted(stack: nn.ModuleList, shifts: Mapping[int, Tensor]) -> Iterator[None]:
    """Add to what layers give: {i: [B or 1, T or 1, d]} to that of layer i - 1."""
    with ExitStack() as hooks:
        for i, shift in shifts.items():
            hooks.callback(stack[i - 1].register_forward_hook(_of_this_thread(_add(shift))).remove)
        yield


def _of_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook in the thread that sets it, and nothing in any other."""
    thread = get_ident()
    return lambda *arguments: hook(*arguments) if get_ident() == thread else None


def _keep_output(states: dict[int, Tensor], index: int):
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        states[index] = _one_stream(output[0] if isinstance(output, tuple) else output)

    return hook


def _add(shift: Tensor):
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden, *others = output if isinstance(output, tuple) else (output,)
        hidden = _one_stream(hidden) + shift.to(hidden)
        return (hidden, *others) if isinstance(output, tuple) else hidden

    return hook


def _keep_input(states: dict[int, Tensor]):
    def hook(_module: nn.Module, inputs: tuple, named: dict[str, Any]) -> None:
        states[0] = _one_stream(inputs[0] if inputs else named["hidden_states"])

    return hook


def _one_stream(hidden: Tensor) -> Tensor:
    """Hidden states [B, T, d]. Errors: several streams of a token, a dimension more, as of DeepSeek V4 and Gemma 3n."""
    if hidden.dim() > 3:
        raise DualHeadError(
            "The backbone's layers carry several streams of a token, and no one hidden state to read or to steer. "
            "Choose a guide of the last hidden state, such as hidden, iav or dual_head."
        )
    return hidden
