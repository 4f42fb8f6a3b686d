"""The mathematics: TrigFlow, its preconditioning, schedules, samplers, time distributions and exact models."""
