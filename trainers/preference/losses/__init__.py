"""One preference loss a file, a class with the file's name (`trainers.preference.objective.PreferenceLoss`)."""
