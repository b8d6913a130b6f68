"""One module a verb of the command line: its flags and a `main()` of calls."""
