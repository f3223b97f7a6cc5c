"""Softmax attention: causal over packed rows, over a cache, and over the latent cache of MLA."""

from pallas_kernels.softmax_attention.attention import KEPT as KEPT
from pallas_kernels.softmax_attention.attention import softmax_attention as softmax_attention
from pallas_kernels.softmax_attention.latent import latent_attention_step as latent_attention_step
from pallas_kernels.softmax_attention.reference import latent_step_definition as latent_step_definition
from pallas_kernels.softmax_attention.reference import softmax_attention_definition as softmax_attention_definition
from pallas_kernels.softmax_attention.xla import cached_attention as cached_attention
