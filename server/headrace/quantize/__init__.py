"""Quantized versions of models, made offline: recipes, calibration, a gate on accuracy, a report."""
