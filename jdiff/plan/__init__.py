"""What a run would need and take on hardware that is not there: compiled for it and run nowhere, so predictions."""
