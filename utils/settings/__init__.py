"""The settings of a training, from command line and files to checked values; free of torch."""
