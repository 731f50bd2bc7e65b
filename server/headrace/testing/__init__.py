"""Fakes for tests, of this project and of those who write backends or clients: time, models, sinks, a client."""
