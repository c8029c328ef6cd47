"""One policy loss a file: `name(inputs: LossInputs, *, options…) -> Loss`. The recipe names the file."""
