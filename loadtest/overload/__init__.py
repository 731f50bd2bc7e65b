"""What a server answers in time when more is asked of it than it can do."""
