"""Every operator's record; what runs over all operators runs over this list."""

from . import conv2d, epilogue, linear, pool2d
from .op import Op

OPS: tuple[Op, ...] = (
    conv2d.CONV2D,
    conv2d.CONV2D_INPUT_GRAD,
    conv2d.CONV2D_WEIGHT_GRAD,
    epilogue.ACTIVATION_GRAD,
    epilogue.BIAS_GRAD,
    pool2d.MAX_POOL2D,
    pool2d.MAX_POOL2D_INPUT_GRAD,
    pool2d.AVG_POOL2D,
    pool2d.AVG_POOL2D_INPUT_GRAD,
    linear.LINEAR,
    linear.LINEAR_INPUT_GRAD,
    linear.LINEAR_WEIGHT_GRAD,
)
