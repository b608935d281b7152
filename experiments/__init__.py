"""Every system of the catalogue in miniature, against answers that are known exactly."""
