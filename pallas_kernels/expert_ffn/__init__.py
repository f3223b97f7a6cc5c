"""Routed experts, dropless: rows sorted by expert, grouped products, and the way back."""

from pallas_kernels.expert_ffn.ffn import expert_ffn as expert_ffn
from pallas_kernels.expert_ffn.reference import expert_ffn_definition as expert_ffn_definition
from pallas_kernels.expert_ffn.rows import sort_by_expert as sort_by_expert
