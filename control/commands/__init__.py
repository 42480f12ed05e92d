"""One module per group of commands. A module is imported only when one of its commands runs, so that
`switchyard --help` answers at once; each offers `configure(parser)` and `run(args, env) -> int` by command."""
