"""How a weight matrix is held, one format a file; compression.json names the files. All are `compress.held.Held`."""
