"""Fused ops: C++ and CUDA kernels, forward and backward, for the formulas that deep generative models spend their time in."""

from dgmfast.ops.bernoulli import bernoulli_log_prob, linear_bernoulli_log_prob, mlp_bernoulli_log_prob
from dgmfast.ops.conv import masked_conv2d
from dgmfast.ops.gaussian import from_normal, gaussian_kl, gaussian_log_prob, gaussian_merge, gaussian_sample, to_normal
from dgmfast.ops.importance import ImportanceState, importance_bound, importance_state
from dgmfast.ops.labels import label_linear, marginalize_labels

__all__ = [
    "ImportanceState",
    "bernoulli_log_prob",
    "from_normal",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_merge",
    "gaussian_sample",
    "importance_bound",
    "importance_state",
    "label_linear",
    "linear_bernoulli_log_prob",
    "marginalize_labels",
    "masked_conv2d",
    "mlp_bernoulli_log_prob",
    "to_normal",
]
