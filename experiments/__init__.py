"""Complete systems and questions, one file each: `python -m experiments.NAME --help`."""
