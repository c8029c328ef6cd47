"""Where problems come from: a file per source, whose function of the file's name returns a list of `Problem`s.

Its keyword arguments are the options that a recipe gives beside the source's name. `rlcore.data.mixture` calls them.
"""
