"""Training of any task: config, command line, data, the loop on accelerate, checkpoints. Knows no network."""
