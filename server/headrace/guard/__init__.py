"""Whether a version answers as its trusted reference would: comparison, and evidence that may be looked at any time."""
