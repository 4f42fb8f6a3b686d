"""What everything stands on: configuration, devices, processes, files, errors."""
