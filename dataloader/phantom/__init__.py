"""A procedural specimen whose isotropic truth is known, and the microscope that records it."""
