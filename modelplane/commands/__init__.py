"""One module per command of the CLI: `run(argv)` reads its flags and returns the exit code."""
