"""What is trained: the loop, the method and its variants."""
