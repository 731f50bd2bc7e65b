"""Message classes of the wire protocols, generated from protos/ by scripts/generate_protos.py."""
