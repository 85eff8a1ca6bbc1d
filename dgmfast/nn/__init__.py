"""Layers: multi-layer perceptrons, Gaussian heads, output distributions, masked convolutions and PixelCNNs."""

from dgmfast.nn.batch_norm import RowBatchNorm, frozen_statistics, normalises
from dgmfast.nn.feature_maps import ConvDown, ConvUp, OverRows
from dgmfast.nn.fused_decoder import MOST_LAYERS, decode, fused_layers, fused_modules
from dgmfast.nn.heads import (
    ConditionalCategorical,
    ConditionalGaussian,
    GaussianHead,
    GaussianMLP,
    log_softplus,
    rename_parameters,
)
from dgmfast.nn.masked_conv import CausalLayer, MaskedConv2d
from dgmfast.nn.mlp import ACTIVATIONS, MLP, ConditionalMLP, LabelLinear, RowWise, activate, glorot, lookup
from dgmfast.nn.outputs import OUTPUTS, BernoulliOutput, GaussianOutput, OutputDistribution, register_output
from dgmfast.nn.pixel_output import PixelOutput
from dgmfast.nn.pixel_sampling import sample_pixels
from dgmfast.nn.pixelcnn import PixelCNNDecoder, PixelCNNOutput, image_of

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "MOST_LAYERS",
    "OUTPUTS",
    "BernoulliOutput",
    "CausalLayer",
    "ConditionalCategorical",
    "ConditionalGaussian",
    "ConditionalMLP",
    "ConvDown",
    "ConvUp",
    "GaussianHead",
    "GaussianMLP",
    "GaussianOutput",
    "LabelLinear",
    "MaskedConv2d",
    "OutputDistribution",
    "OverRows",
    "PixelCNNDecoder",
    "PixelCNNOutput",
    "PixelOutput",
    "RowBatchNorm",
    "RowWise",
    "activate",
    "decode",
    "frozen_statistics",
    "fused_layers",
    "fused_modules",
    "glorot",
    "image_of",
    "log_softplus",
    "lookup",
    "normalises",
    "register_output",
    "rename_parameters",
    "sample_pixels",
]
