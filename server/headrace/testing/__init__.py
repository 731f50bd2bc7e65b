"""Public fakes: clock, backend, virtual-time loop, in-process client."""
