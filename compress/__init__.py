"""How a model becomes cheaper to run. One method a file, below this folder; a recipe's `methods` names the files.

A method takes a `compress.compressed.CompressedModel` and calibration text and gives one (`compress.method`), so methods follow
one another: prune, recover, cluster, tune. How a matrix lies in memory and on disk is a format (`compress/formats`).
"""

APART = ("formats", "architectures", "mixture")  # folders without methods (`rlcore.plugins.names`)
