"""Every operator's record; what runs over all operators runs over this list."""

from typing import Any

from .core.op import Op
from .matrix import activation_grad, batch_norm, conv2d, conv_pool, linear, locally_connected2d, pool_code, prelu
from .pool import avg_pool2d, max_pool2d, unpool2d

OPS: tuple[Op, ...] = (
    conv2d.CONV2D,
    conv2d.CONV2D_WITH_PREACTIVATION,
    conv2d.CONV2D_INPUT_GRAD,
    conv2d.CONV2D_WEIGHT_GRAD,
    conv2d.CONV_TRANSPOSE2D,
    conv2d.CONV_TRANSPOSE2D_WITH_PREACTIVATION,
    locally_connected2d.LOCALLY_CONNECTED2D,
    locally_connected2d.LOCALLY_CONNECTED2D_WITH_PREACTIVATION,
    locally_connected2d.LOCALLY_CONNECTED2D_INPUT_GRAD,
    locally_connected2d.LOCALLY_CONNECTED2D_WEIGHT_GRAD,
    batch_norm.CONV2D_MOMENTS,
    batch_norm.BATCH_NORM,
    batch_norm.BATCH_NORM_GRAD,
    conv_pool.CONV2D_POOL,
    conv_pool.CONV2D_POOL_GRAD,
    pool_code.RELU_POOL2D_INPUT_GRAD,
    pool_code.RELU_POOL2D_AT_OPEN,
    activation_grad.ACTIVATION_GRAD,
    activation_grad.BIAS_GRAD,
    prelu.PRELU_GRAD,
    max_pool2d.MAX_POOL2D,
    max_pool2d.MAX_POOL2D_INPUT_GRAD,
    max_pool2d.MAX_POOL2D_AT_WINNER,
    avg_pool2d.AVG_POOL2D,
    avg_pool2d.AVG_POOL2D_INPUT_GRAD,
    unpool2d.MAX_UNPOOL2D,
    unpool2d.MAX_UNPOOL2D_INPUT_GRAD,
    linear.LINEAR,
    linear.LINEAR_WITH_PREACTIVATION,
    linear.LINEAR_INPUT_GRAD,
    linear.LINEAR_WEIGHT_GRAD,
)
_BY_NAME = {op.name: op for op in OPS}


def op_of(overload: Any) -> Op | None:
    """Return the record of an operator as torch's dispatcher knows it; None for one that isn't ours."""
    namespace, _, name = overload.name().partition("::")
    return _BY_NAME[name.split(".")[0]] if namespace == "cnn_triton" else None
