"""What a training step takes on devices that are not here: seconds and GiB from the physics of the hardware."""
