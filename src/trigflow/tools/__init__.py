"""Tools around models: studies, plan, doctor, bench, demo."""
