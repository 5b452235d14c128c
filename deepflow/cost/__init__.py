"""Costs of operators on one device: time, FLOPs, bytes."""
