"""Probing a model: the plan, the rollouts and their means, the calibration, the report. Start at
`persona_axis.extract`."""
