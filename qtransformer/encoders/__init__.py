"""Encoders: raw observations of one step to the observation tokens of that step."""
