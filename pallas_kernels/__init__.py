"""Kernels, each beside its plain-jnp definition. Usable alone: nothing here knows of models or training."""

from pallas_kernels.expert_ffn import expert_ffn as expert_ffn
from pallas_kernels.grouped_matmul import Quantized as Quantized
from pallas_kernels.grouped_matmul import grouped_matmul as grouped_matmul
from pallas_kernels.lightning_attention import context_lightning_attention as context_lightning_attention
from pallas_kernels.lightning_attention import lightning_attention as lightning_attention
from pallas_kernels.softmax_attention import cached_attention as cached_attention
from pallas_kernels.softmax_attention import latent_attention_step as latent_attention_step
from pallas_kernels.softmax_attention import softmax_attention as softmax_attention
from pallas_kernels.token_logprobs import token_logprobs as token_logprobs
