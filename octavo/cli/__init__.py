"""The command line: octavo serve, chat, complete, bench, collect-env."""
