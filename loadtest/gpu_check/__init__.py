"""What can only be seen on a GPU: checks and measurements in one bounded run, kept as a dated file."""
