"""A branch as the right side of an ODE, integrated by a method, and its conversion from and to residual blocks."""

import math
from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from residual.block import Add, Chain, DropPath, Identity, Residual
from residual.names import require_known
from residual.ode.adaptive import dopri5
from residual.ode.steps import EXPLICIT, STEPS, RightSide, Step
from storage.extra import require_extra


class ODEBlock(nn.Module):
    """The solution at `time` of `dx/dt = branch(x, emb)`, with the block's input as x at time 0 (Chen et al. 2018).

    `method` is a name in `STEPS` or a function `step(f, x, h)`, with the number of `steps`; or `dopri5`, with the
    tolerance `rtol` of its adaptive steps. `euler` with n steps is equal to n residual blocks that share the branch,
    scaled by `time / n`, to the last bit. A negative time integrates backwards.

    Explicit steps are differentiated as they are, `backward_euler` implicitly. `dopri5` solves the adjoint equation, or
    with `adjoint=False` differentiates its steps. `evaluations` counts the calls of the branch since the last forward
    pass began; those of the adjoint equation are added in the backward pass.

    Raises ValueError for an unknown method, a number out of range, or if torchdiffeq is missing. The forward pass
    raises ValueError if the branch changes the shape, or is random in a method that needs the same output for the same
    input, and NotConverged if a solver fails.
    """

    def __init__(
        self,
        branch: nn.Module,
        method: str | Step = "euler",
        *,
        steps: int | None = None,
        rtol: float | None = None,
        time: float = 1.0,
        adjoint: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(method, str):
            require_known("method", method, [*STEPS, "dopri5"])
        adaptive = method == "dopri5"
        if (steps is None) != adaptive or (rtol is None) == adaptive:
            raise ValueError(f"steps={steps}, rtol={rtol}: dopri5 needs rtol alone, all other methods need steps alone")
        if steps is not None and steps < 1:
            raise ValueError(f"steps={steps} must be at least 1")
        if rtol is not None and not 0 < rtol < 1:
            raise ValueError(f"rtol={rtol:g} must be above 0 and below 1")
        if not math.isfinite(time) or time == 0:
            raise ValueError(f"time={time:g} must be finite and other than 0")
        if adaptive:
            require_extra("torchdiffeq", "ode", "dopri5")
        self.branch = branch
        self.method = method
        self.steps = steps
        self.rtol = rtol
        self.time = time
        self.step_size = time / steps if steps else None
        self.adjoint = adjoint
        self.evaluations = 0
        self.takes_emb = bool(getattr(branch, "takes_emb", False))

    @classmethod
    def from_residuals(
        cls, blocks: nn.Module, method: str | Step = "euler", *, steps: int | None = None, rtol: float | None = None
    ) -> "ODEBlock":
        """The ODE of which `blocks`, one `Residual` or a chain of those that share a branch, are Euler's steps.

        Without `steps` and `rtol`, it has one step per block. Raises ValueError, with the name of the block and the
        reason, unless every block is `x + h branch(x)` with the same branch and the same h.
        """
        found = [(name, *euler_step(name, block)) for name, block in residuals(blocks)]
        first, branch, h = found[0]
        for name, other, size in found:
            if other is not branch or size != h:
                what = f"step {size:g} instead of {h:g}" if other is branch else "another branch"
                raise ValueError(
                    f"{name} has {what} than {first}: one ODE has one branch and one step; convert each alone"
                )
        if steps is None and rtol is None:
            steps = len(found)
        ode = cls(branch, method, steps=steps, rtol=rtol, time=len(found) * h)
        if steps == len(found):
            ode.step_size = h  # exactly, where n h / n is rounded
        return ode

    def to_residuals(self, steps: int | None = None) -> Chain:
        """A chain of residual blocks that share the branch: Euler's method, with the steps of this block by default.

        It is equal to this block if the method is `euler` and the steps are the same, else an approximation of order 1.
        """
        steps = self.steps if steps is None else steps
        if steps is None or steps < 1:
            raise ValueError(f"steps={steps} must be at least 1; dopri5 has no number of steps of its own")
        h = self.step_size if steps == self.steps else self.time / steps
        assert h is not None
        return Chain(**{f"step{i}": Residual(self.branch, merge=Add(branch_scale=h)) for i in range(steps)})

    def forward(self, x: Float[Tensor, "b *n"], emb: Float[Tensor, "b e"] | None = None) -> Float[Tensor, "b *n"]:
        step = STEPS.get(self.method) if isinstance(self.method, str) else self.method
        if step not in EXPLICIT:
            require_deterministic(self.branch)
        self.evaluations = 0
        f = self._right_side(emb)
        if step is None:
            assert self.rtol is not None
            used = [*self.parameters(), *([] if emb is None else [emb])] if self.adjoint else None
            return dopri5(f, x, self.time, self.rtol, used)
        assert self.steps is not None
        assert self.step_size is not None
        for _ in range(self.steps):
            x = step(f, x, self.step_size)
        return x

    def _right_side(self, emb: Tensor | None) -> RightSide:
        def f(x: Tensor) -> Tensor:
            self.evaluations += 1
            y = self.branch(x, emb) if self.takes_emb else self.branch(x)
            if y.shape != x.shape:
                raise ValueError(
                    f"the branch maps {tuple(x.shape)} to {tuple(y.shape)}: dx/dt must have the shape of x; "
                    "integrate blocks that change neither width nor size"
                )
            return y

        return f

    def extra_repr(self) -> str:
        method = self.method if isinstance(self.method, str) else repr(self.method)
        return f"{method}, time={self.time:g}, " + (f"steps={self.steps}" if self.steps else f"rtol={self.rtol:g}")


def residuals(blocks: nn.Module) -> Iterator[tuple[str, Residual]]:
    """The residual blocks of a chain with their names, or one block. Raises ValueError if there is anything else."""
    nodes = {"the block": blocks} if isinstance(blocks, Residual) else blocks._modules
    if not nodes:
        raise ValueError(f"{type(blocks).__name__} has no residual blocks")
    for name, block in nodes.items():
        if not isinstance(block, Residual):
            raise ValueError(f"{name} is a {type(block).__name__}: only a chain of Residual blocks can be converted")
        yield name, block


def euler_step(name: str, block: Residual) -> tuple[nn.Module, float]:
    """The branch and the step length of a block `x + h branch(x)`. Raises ValueError for any other block."""
    if not isinstance(block.shortcut, Identity):
        raise ValueError(
            f"{name} has the shortcut {type(block.shortcut).__name__}: an ODE keeps width and size, "
            "so only blocks with an identity shortcut can be converted"
        )
    if not isinstance(block.merge, Add) or block.merge.act is not None or block.merge.scale != 1:
        merge = " ".join(str(block.merge).split())
        raise ValueError(f"{name} has the merge {merge}: only a sum x + h branch(x) is a step of Euler's method")
    return block.branch, block.merge.branch_scale


def require_deterministic(branch: nn.Module) -> None:
    """Raises ValueError, with the name of the module, if a part of the branch draws random numbers in training."""
    for name, part in branch.named_modules():
        share = part.p if isinstance(part, _DropoutNd) else part.probability if isinstance(part, DropPath) else 0
        if part.training and share:
            raise ValueError(
                f"{name} is a {type(part).__name__}, whose output is random in training: "
                "implicit and adaptive methods need a deterministic branch; remove it, or use an explicit method"
            )
