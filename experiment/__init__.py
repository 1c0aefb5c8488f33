"""An experiment: its settings, from command line and files to checked values, and the folder of its run; free of torch."""
