"""The recipes that come with rlcore, one YAML per job a user would launch. `rlcore train NAME` finds them here."""
