"""The lowest layer of packages: configuration, devices, processes, files, errors."""
