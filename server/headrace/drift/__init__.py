"""Whether what flows into and out of a model still looks like its reference: sketches, scores, alarms."""
