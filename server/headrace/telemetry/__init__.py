"""What the server tells about itself: observers, metrics, logs."""
