"""Lightning attention: linear attention with a fixed decay a head, over packed rows, in chunks or token by token."""

from pallas_kernels.lightning_attention.attention import lightning_attention as lightning_attention
from pallas_kernels.lightning_attention.context import context_lightning_attention as context_lightning_attention
from pallas_kernels.lightning_attention.decay import decay_slopes as decay_slopes
from pallas_kernels.lightning_attention.reference import (
    lightning_attention_definition as lightning_attention_definition,
)
from pallas_kernels.lightning_attention.reference import lightning_step as lightning_step
