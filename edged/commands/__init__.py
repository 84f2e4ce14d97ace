"""One file for each `edged` command: parse arguments, call one package, print."""
