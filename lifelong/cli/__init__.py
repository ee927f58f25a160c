"""The command line; `lifelong.cli.main` is its entry point."""
