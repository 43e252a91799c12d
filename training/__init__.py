"""What a person runs: train, evaluate, export, show, and the command line over them."""
