"""Long prompts: one sequence is read with attention over chosen blocks of keys instead of all of them.

patterns    what is chosen, head by head     estimate    by what          blocks    attention over what was chosen
attention   a model's prefill by a pattern   clusters    heads alike      texts, measure   what that costs and saves
"""
