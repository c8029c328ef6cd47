"""`rlcore repro NAME`: a paper's experiment from its file (`recipes/repro/NAME.yaml`) to its numbers (`docs/results`).

experiment  what is compared         expression  what is claimed      run  every arm with every seed
results     what the runs came to    intervals   how sure that is     page, plot  docs/results
"""
