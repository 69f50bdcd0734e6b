"""Work on finished data sets; the commands of the folder above only parse and print."""
