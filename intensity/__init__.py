"""Grey values: the transform to the network and back, and what is measured of a volume for it, in one scan."""
