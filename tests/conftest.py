"""For all tests: an example may take as long as it takes, for the machine may be busy with something else."""

from hypothesis import settings

settings.register_profile("headrace", deadline=None)
settings.load_profile("headrace")
