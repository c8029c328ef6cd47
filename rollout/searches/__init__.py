"""How a tree of solutions grows (`rollout.growing`): a file per way, whose class of the file's name is a `Search`.

Its keyword arguments are the options that a recipe gives beside the name. `rollout.annotate` calls them.
"""
