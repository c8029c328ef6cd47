"""What a completion is worth. One component a file, below this folder; a recipe's `rewards` names the files."""

APART = ("judges",)  # folders of plugins that are no reward components (`rlcore.plugins.names`)
