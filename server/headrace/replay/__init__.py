"""Recorded requests of a model, run again through the same scheduler in virtual time, with other settings."""
