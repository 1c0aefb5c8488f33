"""What every room may use: settings, run folders, files, errors, geometry of crops, spectra, pictures, norms. Imports no room."""
