"""Residual blocks as steps of an ODE: integrators, implicit layers, and the inverse of a block."""

from residual.ode.block import ODEBlock
from residual.ode.fixed_point import NotConverged, fixed_point, implicit
from residual.ode.inverse import invert
from residual.ode.steps import STEPS, Step, backward_euler, euler, heun, midpoint, rk4

__all__ = [
    "STEPS",
    "NotConverged",
    "ODEBlock",
    "Step",
    "backward_euler",
    "euler",
    "fixed_point",
    "heun",
    "implicit",
    "invert",
    "midpoint",
    "rk4",
]
