"""Vector quantisation: each run of d weights becomes the nearest of k codewords, which k-means finds (`compress.kmeans`).

Weights that were pruned before count like all others, as zeros, and the reconstruction is dense: what `mvq` is held against.
"""

from __future__ import annotations

from compress.vector_quantiser import VectorQuantiser


class Vq(VectorQuantiser):
    masked = False
