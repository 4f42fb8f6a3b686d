"""The base of all packages: configuration, devices, processes, files, errors."""
