"""One file per command of `dual-head`; each has `run(arguments) -> exit code`."""
