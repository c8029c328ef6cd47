"""Where drafts come from: one drafter a file, whose class of the file's name is a `rollout.decoding.drafter.Drafter`.

Its keyword arguments are the options that a recipe gives beside the name. `rollout.decoding.decode` calls it.
"""
