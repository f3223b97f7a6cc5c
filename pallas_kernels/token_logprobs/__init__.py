"""Log-probability and entropy of tokens straight from hidden states, without the logits of a batch."""

from pallas_kernels.token_logprobs.logprobs import token_logprobs as token_logprobs
from pallas_kernels.token_logprobs.reference import token_logprobs_definition as token_logprobs_definition
