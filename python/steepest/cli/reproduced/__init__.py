"""What `steepest reproduce` runs: one file for each experiment, with its table."""
