"""How files of judged solutions are laid out: a file per format, whose function of the file's name reads one from `path`.

They make the types of `rlcore.data.steps` and `rlcore.data.preferences`. Where a file is, is the business of
`rlcore.data.files`; a row that is not as its format says is an error that names file, line and field.
"""
