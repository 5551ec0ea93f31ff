"""Every operator's record; what runs over all operators runs over this list."""

from . import avg_pool2d, conv2d, epilogue, linear, max_pool2d, unpool2d
from .op import Op

OPS: tuple[Op, ...] = (
    conv2d.CONV2D,
    conv2d.CONV2D_INPUT_GRAD,
    conv2d.CONV2D_WEIGHT_GRAD,
    epilogue.ACTIVATION_GRAD,
    epilogue.BIAS_GRAD,
    max_pool2d.MAX_POOL2D,
    max_pool2d.MAX_POOL2D_INPUT_GRAD,
    max_pool2d.MAX_POOL2D_AT_WINNER,
    avg_pool2d.AVG_POOL2D,
    avg_pool2d.AVG_POOL2D_INPUT_GRAD,
    unpool2d.MAX_UNPOOL2D,
    unpool2d.MAX_UNPOOL2D_INPUT_GRAD,
    linear.LINEAR,
    linear.LINEAR_INPUT_GRAD,
    linear.LINEAR_WEIGHT_GRAD,
)
