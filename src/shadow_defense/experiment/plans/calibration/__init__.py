"""The weakest Shadow setting that keeps an attack below a target: ``shadow-defense calibrate``."""
