"""Products of consecutive groups of rows with one matrix per group."""

from pallas_kernels.grouped_matmul.product import grouped_matmul as grouped_matmul
from pallas_kernels.grouped_matmul.quantized import Quantized as Quantized
from pallas_kernels.grouped_matmul.reference import grouped_matmul_definition as grouped_matmul_definition
