"""Masked vector quantisation: k-means sees the weights that pruning left, and the mask is applied again to the codewords.

    min_{C, a}  Σ_j ‖ m_j ∘ (w_j − c_{a_j}) ‖²,    ŵ_j = m_j ∘ c_{a_j}

The mask is that of a pruner that came before (`magnitude`, `wanda`, `sparsegpt`, with a `pattern`), best recovered by
`mask_lora`; `codewords` tunes the result. On one-shot masks the whole error is no less than plain VQ's at equal bits: the gain
is where the mask costs nothing. (arXiv 2412.10261; language models are our adaptation.)
"""

from __future__ import annotations

from compress.vector_quantiser import VectorQuantiser


class Mvq(VectorQuantiser):
    masked = True
