"""How anything is trained: config, command line, data, the loop on accelerate, checkpoints. Knows no network."""
