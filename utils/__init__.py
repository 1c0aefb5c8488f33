"""Settings, files, pictures, numbers: no imaging method, no package of ours imported."""
